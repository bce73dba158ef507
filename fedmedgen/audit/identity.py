"""What an audit is of: the hashes that tie it to one generator, one set of settings and one ledger."""

import hashlib
from pathlib import Path


def fingerprint(run: Path, site: str, *, ledger: Path | None = None) -> dict[str, str]:
    """SHA-256 of the run's generator, settings and synthetic set, and of the site's ledger; empty where absent.

    `ledger` is where a real site has its own; else the run folder's is meant, which may be the copy that it sent.
    """
    return {
        "generator": folder_hash(run / "generator"),
        "settings": file_hash(run / "settings.yaml"),
        "synthetic": folder_hash(run / "synthetic"),
        "ledger": file_hash(ledger or run / "sites" / site / "ledger.jsonl"),
    }


def file_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def folder_hash(folder: Path) -> str:
    """Over the names and bytes of all files below, in the order of their names; empty where there is none."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    whole = hashlib.sha256()
    for path in files:
        whole.update(f"{path.relative_to(folder).as_posix()} {file_hash(path)}\n".encode())
    return whole.hexdigest() if files else ""
