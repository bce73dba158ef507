"""Is a release as it was signed? Needs nothing but its folder, and the project's public key to know who signed."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedmedgen.errors import ReleaseError
from fedmedgen.release import certificate
from fedmedgen.release.evidence import group
from fedmedgen.release.signing import fingerprint_of, is_signed, read_public

MUST = (certificate.PAGE, "README.md", "datasheet.md", "set/labels.csv")


@dataclass(frozen=True)
class Verified:
    """Everything that is wrong, and whose key the release names; `pinned`: the key was compared with a given one."""

    faults: tuple[str, ...]
    fingerprint: str
    pinned: bool
    files: int

    @property
    def whole(self) -> bool:
        return not self.faults


def verify(folder: Path, *, public_key: Path | None = None) -> Verified:
    """Check every hash, that no file is missing or too many, and the signature.

    Without `public_key` a release that somebody else wrote and signed anew passes too: compare the fingerprint.

    **Raises** `ReleaseError` if there is no certificate that can be read.
    """
    text, content = _read(folder)
    faults = []
    if text != certificate.written(content):
        faults.append(f"{certificate.NAME} is not written as a certificate is: it was changed after it was signed")
    public = str(group(content, "key").get("public", ""))
    faults += _key_faults(folder, content, public, read_public(public_key) if public_key else None)
    listed = {str(name): str(value) for name, value in group(content, "files").items()}
    faults += _file_faults(folder, listed)
    if content.get("format") != certificate.FORMAT:
        faults.append(f"the certificate has format {content.get('format')!r}; this version reads {certificate.FORMAT}")
    if any(group({"check": check}, "check").get("reasons") != [] for check in content.get("checks") or [None]):
        faults.append("the certificate has reasons against its own release, or no checks")
    return Verified(tuple(faults), _fingerprint(public), public_key is not None, len(listed))


def _read(folder: Path) -> tuple[str, dict[str, Any]]:
    path = folder / certificate.NAME
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text, parse_constant=_no_number)
    except (OSError, ValueError) as error:
        raise ReleaseError(f"expected a release with its {certificate.NAME} in {folder}: {error}") from error
    if not isinstance(content, dict):
        raise ReleaseError(f"expected a mapping in {path}; got {type(content).__name__}")
    return text, content


def _no_number(name: str) -> float:
    raise ValueError(f"{name} stands where a number should")


def _key_faults(folder: Path, content: dict[str, Any], public: str, pinned: str | None) -> list[str]:
    faults = []
    path = folder / certificate.SIGNATURE
    signature = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    if not is_signed(certificate.signed_bytes(content), signature, pinned or public):
        whose = "the key that was given" if pinned else "the key that the certificate names"
        faults.append(f"{certificate.SIGNATURE} is not the signature of this certificate by {whose}")
    if pinned and pinned != public:
        faults.append(f"the certificate names another key than the one given, {_fingerprint(pinned)[:16]}…")
    if _fingerprint(public) != group(content, "key").get("fingerprint"):
        faults.append("the certificate's fingerprint is not that of its key")
    return faults


def _file_faults(folder: Path, listed: dict[str, str]) -> list[str]:
    found = certificate.files_of(folder)
    odd = [path.relative_to(folder).as_posix() for path in folder.rglob("*")
           if path.is_symlink() or not (path.is_file() or path.is_dir())]  # fmt: skip
    return [
        *(f"{name} is a link or a device, not a file" for name in sorted(odd)),
        *(f"{name} is missing" for name in sorted(listed.keys() - found.keys())),
        *(f"{name} is not in the certificate" for name in sorted(found.keys() - listed.keys())),
        *(f"{name} was changed" for name in sorted(found.keys() & listed.keys()) if found[name] != listed[name]),
        *(f"the certificate doesn't list {name}" for name in MUST if name not in listed),
    ]


def _fingerprint(public: str) -> str:
    try:
        return fingerprint_of(public)
    except ValueError:
        return ""
