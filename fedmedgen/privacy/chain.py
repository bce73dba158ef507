"""The ledger's bytes: chained JSON lines with a MAC each, the head that pins their number, and torn last lines.

A line is `{"n":1,"prev":MAC of the line before,"event":…,…,"mac":MAC}`: the MAC is HMAC-SHA256 under the site's key
over the line's exact bytes without its own `,"mac":"…"`. Standard library only.
"""

import hashlib
import hmac
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedmedgen.errors import LedgerError

START = "0" * 64  # what stands for the MAC before the first line
TAIL = re.compile(rb',"mac":"([0-9a-f]{64})"\}$')


def canonical(mapping: Mapping[str, Any]) -> bytes:
    """The one way of writing a mapping as JSON bytes."""
    return json.dumps(mapping, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def digest_of(mapping: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON."""
    return hashlib.sha256(canonical(mapping)).hexdigest()


@dataclass(frozen=True)
class Head:
    """How many lines the chain has, and the MAC of the last: kept in a second file."""

    count: int
    mac: str


@dataclass(frozen=True)
class Chain:
    """What was read: events in order, the head that fits them, and the bytes of a torn last line, if any."""

    events: tuple[Mapping[str, Any], ...]
    head: Head
    torn: bytes
    lacks_newline: bool  # the last event is whole but its line isn't ended
    last_line: int  # where the torn bytes begin, counted in the file's lines from 1


def sealed_line(event: Mapping[str, Any], head: Head, key: bytes) -> tuple[bytes, Head]:
    """The event as the next line after `head`, with its newline, and the new head."""
    fields = {"n": head.count + 1, "prev": head.mac, **event}
    body = json.dumps(fields, separators=(",", ":"), allow_nan=False).encode()
    mac = hmac.new(key, body, hashlib.sha256).hexdigest()
    return body[:-1] + f',"mac":"{mac}"}}\n'.encode(), Head(head.count + 1, mac)


def read_chain(data: bytes, key: bytes | None) -> Chain:
    """Read and check every line; without a key the links are checked but not the MACs.

    What follows the last whole line is given back as torn: whether it may be is for `check_head` to say.

    **Raises** `LedgerError` naming a broken line that whole lines follow.
    """
    *ended, rest = data.split(b"\n")
    events: list[Mapping[str, Any]] = []
    head, torn, torn_at = Head(0, START), list[bytes](), 0
    for number, line in enumerate(ended, 1):
        event = _opened(line, head, key)
        if event is None:
            torn, torn_at = [*torn, line], torn_at or number
            continue
        if (event["event"] == "torn") != bool(torn) or (torn and event["sha256"] != _hash(torn)):
            raise broken(torn_at or number)
        events.append(event)
        head, torn, torn_at = Head(head.count + 1, _mac(line)), [], 0
    last = _opened(rest, head, key) if rest and not torn else None
    if last is not None and last["event"] != "torn":
        return Chain((*events, last), Head(head.count + 1, _mac(rest)), b"", True, len(ended) + 1)
    return Chain(tuple(events), head, b"\n".join([*torn, rest]), False, torn_at or len(ended) + 1)


def mending_event(torn: bytes, cost: Mapping[str, Any]) -> dict[str, Any]:
    """The event that closes a torn line: what it held by hash, and what it costs."""
    return {"event": "torn", "bytes": len(torn), "sha256": _hash([torn]), "cost": dict(cost)}


def check_head(chain: Chain, head: Head | None) -> None:
    """Refuse a chain that isn't the one the head pins, or one event (a crash before the head was written) further.

    **Raises** `LedgerError` for a shorter, other, or more than one line longer chain.
    """
    pinned = head or Head(0, START)
    count = chain.head.count
    if chain.torn and (count < pinned.count or (head is None and b"\n" in chain.torn)):
        raise broken(chain.last_line)
    if count < pinned.count:
        raise LedgerError(
            f"the ledger has {count} whole lines but its head says {pinned.count}: lines were cut off after "
            f"line {chain.last_line - 1}; restore the ledger from its latest copy"
        )
    if count > pinned.count + 1:
        raise LedgerError(
            f"the ledger has {count} lines but its head says {pinned.count}: the head was lost or restored from an "
            "older copy; restore the head that belongs to this ledger"
        )
    before = START if count == 0 else str(chain.events[-1]["prev"])
    if pinned.mac != (chain.head.mac if count == pinned.count else before):
        raise LedgerError(f"line {pinned.count} of the ledger isn't the one its head was written for: another chain")


def read_head(path: Path, key: bytes | None) -> Head | None:
    """The head, or None where there is no file.

    **Raises** `LedgerError` if it is broken or not under this key.
    """
    if not path.exists():
        return None
    try:
        fields = json.loads(path.read_bytes())
        head, seal = Head(int(fields["count"]), str(fields["last"])), str(fields["seal"])
    except (ValueError, KeyError, TypeError) as fault:
        raise LedgerError("the ledger's head can't be read: expected count, last and seal as JSON") from fault
    if key is not None and not hmac.compare_digest(seal, _seal(head, key)):
        raise LedgerError("the ledger's head was not written under this key: give the site's own key")
    return head


def write_head(path: Path, head: Head, key: bytes) -> None:
    """Replace the head atomically and fsync it."""
    fields = {"count": head.count, "last": head.mac, "seal": _seal(head, key)}
    fresh = path.with_name(path.name + ".new")
    handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(handle, json.dumps(fields).encode() + b"\n")
        os.fsync(handle)
    finally:
        os.close(handle)
    fresh.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a new or renamed file's entry survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def broken(line: int) -> LedgerError:
    """The refusal of a line that was changed."""
    return LedgerError(
        f"line {line} of the ledger is broken: it was changed, moved or written under another key; "
        "give the site's own key, or restore the ledger from its latest copy"
    )


def _opened(line: bytes, head: Head, key: bytes | None) -> Mapping[str, Any] | None:
    """The event of a whole line that follows `head`, or None."""
    tail = TAIL.search(line)
    if tail is None:
        return None
    body = line[: tail.start()] + b"}"
    if key is not None and not hmac.compare_digest(_mac(line), hmac.new(key, body, hashlib.sha256).hexdigest()):
        return None
    try:
        event = json.loads(body)
    except ValueError:
        return None
    follows = isinstance(event, dict) and event.get("n") == head.count + 1 and event.get("prev") == head.mac
    return event if follows and "event" in event else None


def _mac(line: bytes) -> str:
    return line[-66:-2].decode()


def _hash(pieces: list[bytes]) -> str:
    return hashlib.sha256(b"\n".join(pieces)).hexdigest()


def _seal(head: Head, key: bytes) -> str:
    return hmac.new(key, f"head {head.count} {head.mac}".encode(), hashlib.sha256).hexdigest()
