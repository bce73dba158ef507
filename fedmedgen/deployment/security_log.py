"""A file of what was asked, refused and sent: one JSON object a line, for people and for tools of a security office.

The same form is written by `guard`, which may import nothing of this package.
"""

import datetime
import json
import os
from pathlib import Path

NAME = "security.jsonl"
BEFORE = "security.jsonl.1"
MOST_BYTES = 20_000_000  # of a file that strangers can make grow


def note(folder: Path, event: str, **words: object) -> None:
    """Append one event; lines of several processes don't mix, since each is one write."""
    known = {"time": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"), "event": event, **words}
    line = json.dumps(known, default=str) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / NAME, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(handle, line.encode())
    finally:
        os.close(handle)


def note_bounded(folder: Path, event: str, **words: object) -> None:
    """As `note`, where anybody may cause a line: the file before is kept, older ones go. For one process alone."""
    path = folder / NAME
    if path.is_file() and path.stat().st_size > MOST_BYTES:
        path.replace(folder / BEFORE)
    note(folder, event, **words)
