"""The site's key, under which its ledger is written. Standard library only."""

import contextlib
import os
import secrets
from pathlib import Path

from fedmedgen.errors import LedgerError
from fedmedgen.privacy.head import make_folder, sync_folder


def load_or_create_key(path: Path) -> bytes:
    """The site's ledger key, made from the operating system's entropy the first time.

    **Raises** `LedgerError` if others can read the file, or it isn't 64 hexadecimal digits.
    """
    if not path.exists():
        make_folder(path.parent)
        fresh = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
        handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_hex(32) + "\n")
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(fresh, path)
        fresh.unlink()
        sync_folder(path.parent)
    return load_key(path)


def load_key(path: Path) -> bytes:
    """The key in `path`.

    **Raises** `LedgerError` if others can read the file, or it isn't 64 hexadecimal digits.
    """
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        raise LedgerError(f"the ledger key must be readable by its owner only; its mode is {mode:o}: chmod 600 it")
    text = path.read_text().strip()
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != 32:
        raise LedgerError(f"the ledger key must be 64 hexadecimal digits; got {len(text)} characters: not a key file")
    return key
