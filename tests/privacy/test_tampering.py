"""Every byte of ledger and head, replaced, deleted or followed by another: found, and the line named."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedmedgen.errors import LedgerError
from fedmedgen.privacy.budget import Plan
from fedmedgen.privacy.ledger import Ledger, Limit

Opened = Callable[[], Ledger]
LIMIT = Limit(epsilon=10.0, delta=1e-3)


@pytest.fixture
def filled(open_ledger: Opened, plan: Plan, tmp_path: Path) -> Path:
    """A ledger of four lines: open, reserve, complete, reserve."""
    ledger = open_ledger()
    ledger.open_plan("run-1", plan.digest, plan.to_mapping(), epsilon=2.0, delta=1e-5, limit=LIMIT)
    ledger.reserve("run-1", plan.digest, "generator", 10, "request-1")
    ledger.complete("request-1", "reply")
    ledger.reserve("run-1", plan.digest, "generator", 20, "request-2")
    return tmp_path / "ledger.jsonl"


def tampered(whole: bytes) -> Iterator[tuple[int, bytes]]:
    """Each byte replaced by two others, deleted, and preceded by a digit, a newline or a zero; with its place."""
    for place, byte in enumerate(whole):
        before, after = whole[:place], whole[place + 1 :]
        for other in (byte ^ 1, byte ^ 0x80):
            yield place, before + bytes([other]) + after
        yield place, before + after
        for more in (b"0", b"\n", b"\0"):
            if more[0] != byte:
                yield place, before + more + whole[place:]


def put(path: Path, data: bytes) -> None:
    """Write in place: emptying a file first makes some disks wait."""
    with path.open("r+b") as file:
        file.write(data)
        file.truncate()


def test_every_changed_missing_or_added_byte_of_the_ledger_is_found_and_its_line_named(
    filled: Path, open_ledger: Opened
) -> None:
    whole = filled.read_bytes()
    ledger = open_ledger()
    for place, data in tampered(whole):
        if data == whole[:-1]:
            continue  # a crash may leave the last newline out: nothing is lost with it
        put(filled, data)
        line = whole[:place].count(b"\n") + 1
        with pytest.raises(LedgerError, match=f"line {line} of the ledger is broken"):
            ledger.spent()
    filled.write_bytes(whole)
    assert ledger.spent().plans.popitem()[1].reserved["generator"] == 30


@pytest.mark.parametrize("more", [b"0", b"\n", b"\0", b"{}\n", b"\n\n"])
def test_bytes_added_after_the_last_line_close_the_ledger(
    filled: Path, open_ledger: Opened, plan: Plan, more: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with filled.open("ab") as file:
        file.write(more)
    assert open_ledger().spent().closed
    open_ledger().complete("request-2", "reply")
    assert "line 5 of the ledger was torn" in caplog.text
    assert open_ledger().spent().closed


@pytest.mark.parametrize("end", [None, -1], ids=["its newline written", "its newline not written"])
def test_a_changed_last_line_is_refused_though_a_crash_kept_the_head_from_counting_it(
    filled: Path, open_ledger: Opened, plan: Plan, end: int | None
) -> None:
    head = filled.with_suffix(".head")
    before, start = head.read_bytes(), filled.stat().st_size
    open_ledger().reserve("run-1", plan.digest, "generator", 5, "request-3")
    head.write_bytes(before)
    whole = filled.read_bytes()[:end]
    for place, data in tampered(whole):
        if place < start or place >= len(whole) - 75 or data[place : place + 1] == b"\0":
            continue
        put(filled, data)
        with pytest.raises(LedgerError, match="line 5 of the ledger is broken"):
            open_ledger().spent()
    filled.write_bytes(whole)
    assert open_ledger().spent().requests["request-3"] == "reserved"


def test_every_changed_missing_or_added_byte_of_the_head_is_found(filled: Path, open_ledger: Opened) -> None:
    head = filled.with_suffix(".head")
    whole = head.read_bytes()
    for _, data in tampered(whole):
        put(head, data)
        with pytest.raises(LedgerError, match="the ledger's head"):
            open_ledger().spent()
    head.write_bytes(whole)
    assert open_ledger().spent().epsilon == 2.0


def test_lines_checked_once_are_checked_again_when_they_have_changed(filled: Path, open_ledger: Opened) -> None:
    ledger, whole = open_ledger(), filled.read_bytes()
    assert ledger.spent().epsilon == 2.0
    filled.write_bytes(whole.replace(b'"epsilon":2.0', b'"epsilon":1.0'))
    with pytest.raises(LedgerError, match="line 1"):
        ledger.spent()
    filled.write_bytes(whole)
    assert ledger.spent().epsilon == 2.0
