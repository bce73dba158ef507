"""The ledger's bytes: chained JSON lines with a MAC each, torn last lines, and whether a head fits them.

A line is `{"n":1,"prev":MAC of the line before,"event":…,…,"mac":MAC}`: the MAC is HMAC-SHA256 under the site's key
over the line's exact bytes without its own `,"mac":"…"`. Standard library only.
"""

import hashlib
import hmac
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedmedgen.errors import LedgerError

START = "0" * 64  # what stands for the MAC before the first line
TAIL = re.compile(rb',"mac":"[0-9a-f]{64}"\}')
MAC_BYTES = 74  # of a line, its own MAC


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
    last_line: int  # where the torn bytes begin, or would, counted in the file's lines from 1
    data: bytes  # all of the above as it was read

    @property
    def clean(self) -> bool:
        """Whether every byte belongs to a checked line."""
        return not self.torn and not self.lacks_newline


def sealed_line(event: Mapping[str, Any], head: Head, key: bytes) -> tuple[bytes, Head]:
    """The event as the next line after `head`, with its newline, and the new head."""
    fields = {"n": head.count + 1, "prev": head.mac, **event}
    body = json.dumps(fields, separators=(",", ":"), allow_nan=False).encode()
    mac = hmac.digest(key, body, "sha256").hex()
    return body[:-1] + f',"mac":"{mac}"}}\n'.encode(), Head(head.count + 1, mac)


def read_chain(data: bytes, key: bytes | None, known: Chain | None = None) -> Chain:
    """Read and check every line; without a key the links are checked but not the MACs.

    Lines byte for byte those of `known`, a chain read under the same key, are not checked a second time. What follows
    the last whole line is given back as torn: whether it may be is for `check_head` to say.

    **Raises** `LedgerError` naming a line that was changed: one that whole lines follow, or that is whole itself.
    """
    first, events, head = 1, list[Mapping[str, Any]](), Head(0, START)
    lines = data.split(b"\n")
    if known is not None and known.clean and data.startswith(known.data):
        first, events, head = known.last_line, list(known.events), known.head
        lines = data[len(known.data) :].split(b"\n")
    torn, torn_at, final = list[bytes](), 0, first + len(lines) - 1
    for number, line in enumerate(lines, first):
        event = _opened(line, head, key)
        if event is not None:
            if (event["event"] == "torn") != bool(torn) or (torn and event["sha256"] != _hash(torn)):
                raise broken(torn_at or number)
            events.append(event)
            head, torn, torn_at = Head(head.count + 1, _mac(line)), [], 0
        elif _looks_whole(line):
            raise broken(torn_at or number)
        elif line or torn or number < final:
            torn, torn_at = [*torn, line], torn_at or number
    lacks_newline = bool(lines[-1]) and not torn
    return Chain(tuple(events), head, b"\n".join(torn), lacks_newline, torn_at or final + lacks_newline, data)


def mending_event(torn: bytes, cost: Mapping[str, Any]) -> dict[str, Any]:
    """The event that closes a torn line: what it held by hash, and what it costs."""
    return {"event": "torn", "bytes": len(torn), "sha256": _hash([torn]), "cost": dict(cost)}


def check_head(chain: Chain, head: Head | None) -> None:
    """Refuse a chain that isn't the one the head pins, or one event (a crash before the head was written) further.

    **Raises** `LedgerError` for a shorter, other, or more than one line longer chain.
    """
    pinned = head or Head(0, START)
    count = chain.head.count
    if chain.torn and count < pinned.count:
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


def broken(line: int) -> LedgerError:
    """The refusal of a line that was changed."""
    return LedgerError(
        f"line {line} of the ledger is broken: it was changed, moved or written under another key; "
        "give the site's own key, or restore the ledger from its latest copy"
    )


def _opened(line: bytes, head: Head, key: bytes | None) -> Mapping[str, Any] | None:
    """The event of a whole line that follows `head`, or None."""
    if not _looks_whole(line):
        return None
    body = line[:-MAC_BYTES] + b"}"
    if key is not None and not hmac.compare_digest(_mac(line), hmac.digest(key, body, "sha256").hex()):
        return None
    try:
        event = json.loads(body)
    except ValueError:
        return None
    follows = isinstance(event, dict) and event.get("n") == head.count + 1 and event.get("prev") == head.mac
    return event if follows and "event" in event else None


def _looks_whole(line: bytes) -> bool:
    """Whether the line ends as a whole one does: no crash cuts it so, but a power cut may leave zeros within."""
    return TAIL.fullmatch(line[-MAC_BYTES:]) is not None and b"\0" not in line


def _mac(line: bytes) -> str:
    return line[-66:-2].decode()


def _hash(pieces: list[bytes]) -> str:
    return hashlib.sha256(b"\n".join(pieces)).hexdigest()
