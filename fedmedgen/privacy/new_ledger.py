"""A real site's key, ledger and head: made once, by a person. Where one is missing later, nothing may be spent.

Standard library only.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from fedmedgen.errors import LedgerError
from fedmedgen.privacy.chain import START, Head
from fedmedgen.privacy.head import draft_head, make_folder, settle_head, sync_folder, unwritable
from fedmedgen.privacy.site_key import load_or_create_key


def create_ledger(path: Path, *, key_path: Path, head_path: Path) -> None:
    """Make a fresh key, an empty ledger and its head of no lines, all on disk when this returns.

    **Raises** `LedgerError` if one of them is there already, or the folder of a head kept elsewhere is not.
    """
    for name, place in _named(path, key_path, head_path).items():
        if place.exists():
            raise LedgerError(
                f"the {name} at {place} exists already: a ledger is made once and kept for a site's life; "
                "if what is here was only half made and nothing was ever spent, remove it and make it anew"
            )
    if head_path.parent != path.parent and not head_path.parent.is_dir():
        raise LedgerError(
            f"expected the folder of the ledger's head at {head_path.parent}; there is none: mount its disk, or make it"
        )
    try:
        make_folder(path.parent, 0o700)
        key = load_or_create_key(key_path)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)  # of two who make it, one goes on
        os.fsync(handle)
        os.close(handle)
        sync_folder(path.parent)
    except OSError as fault:
        raise unwritable(path, fault) from fault
    settle_head(draft_head(head_path, Head(0, START), key), head_path)


def require_made(path: Path, *, key_path: Path, head_path: Path) -> None:
    """**Raises** `LedgerError` if a real site's key, ledger or head isn't where its policy says."""
    for name, place in _named(path, key_path, head_path).items():
        if not place.is_file():
            raise missing(name, place)


def missing(name: str, place: Path) -> LedgerError:
    """The refusal where a file that a person made is gone, and with it what was spent."""
    return LedgerError(
        f"expected the {name} at {place}; there is none: a disk may not be mounted, or it was moved or deleted. "
        "Where there never was one, or all is lost, a person can make a new one by `fedmedgen ledger create POLICY`, "
        "under a lifetime budget that counts what was spent before"
    )


def _named(path: Path, key_path: Path, head_path: Path) -> Mapping[str, Path]:
    return {"ledger's key": key_path, "ledger": path, "ledger's head": head_path}
