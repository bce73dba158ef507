"""One process at a time in a folder of the site's: the others wait, and one that dies lets go."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from fedmedgen.privacy.head import make_folder


@contextlib.contextmanager
def turn_in(folder: Path, name: str) -> Iterator[None]:
    """Wait until no other process holds a name that begins alike; the lock is its owner's alone."""
    make_folder(folder)
    handle = os.open(folder / f".lock-{name[:2]}", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        fcntl.flock(handle, fcntl.LOCK_UN)  # for children that inherited it too
        os.close(handle)
