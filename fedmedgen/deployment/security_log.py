"""A file of what was asked, refused and sent: one JSON object a line, for people and for tools of a security office.

`guard` loads this file by its path, since it may import nothing of this package: nor may this file.
"""

import datetime
import errno
import fcntl
import json
import os
from pathlib import Path

NAME = "security.jsonl"
BEFORE = "security.jsonl.1"
MOST_BYTES = 20_000_000  # of a file that strangers can make grow


def note(folder: Path, event: str, **words: object) -> None:
    """Append one event, whole or not at all; lines of several processes don't mix.

    **Raises** `OSError` where it can't be written down.
    """
    known = {"time": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"), "event": event, **words}
    line = json.dumps(known, default=str) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / NAME, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        _append(handle, line.encode())
    finally:
        os.close(handle)


def _append(handle: int, line: bytes) -> None:
    """A full disk takes a part of a line without a word, and a crash may leave one: neither may run into the next."""
    end = os.fstat(handle).st_size
    if end and os.pread(handle, 1, end - 1) != b"\n":
        line = b"\n" + line
    if os.write(handle, line) < len(line):
        os.ftruncate(handle, end)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), NAME)


def note_bounded(folder: Path, event: str, **words: object) -> None:
    """As `note`, where anybody may cause a line: the file before is kept, older ones go. For one process alone."""
    path = folder / NAME
    if path.is_file() and path.stat().st_size > MOST_BYTES:
        path.replace(folder / BEFORE)
    note(folder, event, **words)
