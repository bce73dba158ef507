"""The ledger's second file, the head: the number of lines and the last MAC, sealed under the site's key.

It may lie in another folder, or on another disk, than the ledger. Standard library only.
"""

import hashlib
import hmac
import json
import os
from pathlib import Path

from fedmedgen.errors import LedgerError
from fedmedgen.privacy.chain import Head


def read_head(path: Path, key: bytes | None) -> Head | None:
    """The head, or None where there is no file.

    **Raises** `LedgerError` if a byte of it was changed, or it is not under this key.
    """
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as fault:
        raise LedgerError(f"the ledger's head at {path} can't be read ({fault.strerror}): see to its disk") from fault
    try:
        fields = json.loads(data)
        head, seal = Head(int(fields["count"]), str(fields["last"])), str(fields["seal"])
    except (ValueError, KeyError, TypeError, OverflowError) as fault:
        raise LedgerError("the ledger's head can't be read: expected count, last and seal as JSON") from fault
    if data != _written(head, seal if key is None else _seal(head, key)):
        raise LedgerError(
            "the ledger's head was changed, or not written under this key: give the site's own key, or restore the head"
        )
    return head


def draft_head(path: Path, head: Head, key: bytes) -> Path:
    """Write and fsync the head beside its place, where `settle_head` will put it.

    **Raises** `LedgerError` if it can't be written: then nothing may be spent.
    """
    draft = path.with_name(path.name + ".new")
    try:
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            data = _written(head, _seal(head, key))
            while data:
                data = data[os.write(handle, data) :]
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as fault:
        raise unwritable(path, fault) from fault
    return draft


def settle_head(draft: Path, path: Path) -> None:
    """Replace the head by its draft, atomically, and fsync its folder."""
    try:
        draft.replace(path)
        sync_folder(path.parent)
    except OSError as fault:
        raise LedgerError(
            f"the ledger's head at {path} could not be replaced ({fault.strerror}): what was asked for is spent and "
            "nothing was computed; make the head's folder writable"
        ) from fault


def make_folder(folder: Path, mode: int = 0o777) -> None:
    """Make a folder, and make its entry and those of its parents survive a power cut."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(mode, parents=True, exist_ok=True)
    for place in missing:
        sync_folder(place.parent)


def sync_folder(folder: Path) -> None:
    """Make a new or renamed file's entry survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def unwritable(path: Path, fault: OSError) -> LedgerError:
    """The refusal where ledger or head can't be written."""
    return LedgerError(
        f"{path} can't be written ({fault.strerror}): nothing was reserved; "
        "make its folder writable, or name another in the site's policy"
    )


def _written(head: Head, seal: str) -> bytes:
    return json.dumps({"count": head.count, "last": head.mac, "seal": seal}).encode() + b"\n"


def _seal(head: Head, key: bytes) -> str:
    return hmac.new(key, f"head {head.count} {head.mac}".encode(), hashlib.sha256).hexdigest()
