"""Cut a ledger at every byte of its last two lines, with the head as it was before or after each."""

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from fedmedgen.errors import BudgetError, LedgerError
from fedmedgen.privacy.chain import digest_of
from fedmedgen.privacy.ledger import Ledger
from fedmedgen.privacy.spending import Spending
from simulations.campaigns.victims import LIFETIME, MAPPING, ledger_in

PLAN = digest_of(MAPPING)
LAST_TWO = ("open reserve", "reserve complete", "complete open", "open open", "complete reserve", "torn reserve")
FAULTS = {
    "lost": "cuts after which less was spent than before",
    "refused": "good chains refused",
    "accepted": "lines cut off behind the head's back that were not refused",
}


@dataclass(frozen=True)
class Files:
    """Ledger and head as they were after an event."""

    ledger: bytes
    head: bytes


def histories(folder: Path, last_two: str) -> list[Files]:
    """The files after each event of a ledger that ends with these two; they stay as the last left them."""
    ledger, history = ledger_in(folder), [Files(b"", b"")]
    act: dict[str, Callable[[int], None]] = {
        "open": lambda number: _open(ledger, f"run-{number}", 1.5),
        "reserve": lambda number: ledger.reserve("run-0", PLAN, "generator", 7, f"request-{number}"),
        "complete": lambda number: ledger.complete(f"request-{number - 1}", "0" * 64),
        "torn": lambda _: _tear_and_mend(folder, ledger),
    }
    first = "open reserve reserve" if last_two.startswith("complete") else "open reserve"
    for number, event in enumerate(f"{first} {last_two}".split()):
        act[event](number)
        history.append(Files((folder / "ledger.jsonl").read_bytes(), (folder / "ledger.head").read_bytes()))
    return history


def cut(folder: Path, last_two: str) -> Counter[str]:
    """Every cut of the last two lines; how many there were, and the faults found. Nothing waits for the disk."""
    with mock.patch.object(os, "fsync"):
        return _cut(folder, last_two)


def _cut(folder: Path, last_two: str) -> Counter[str]:
    history = histories(folder, last_two)
    found: Counter[str] = Counter()
    for before, after, ended in ((*history[-3:-1], history[-1]), (*history[-2:], history[-1])):
        line = after.ledger[len(before.ledger) :]
        least, most = _spent(folder, before), _spent(folder, after)
        for length in range(len(line) + 1):
            torn = before.ledger + line[:length]
            found["cuts"] += 1
            for fault in _as_a_crash(folder, Files(torn, before.head), least if length == 0 else most):
                found[fault] += 1
            for head in {after.head, ended.head}:
                whole = head == after.head and length >= len(line) - 1
                for fault in _behind_the_head(folder, Files(torn, head), most, whole=whole):
                    found[fault] += 1
    return found


def _as_a_crash(folder: Path, files: Files, least: Spending) -> Iterator[str]:
    """The head wasn't written yet: the cut costs at least `least`, and the ledger goes on, or is closed for good."""
    try:
        read = _spent(folder, files)
        if not _covers(read, least):
            yield "lost"
        try:
            ledger_in(folder).reserve("run-0", PLAN, "generator", 1, "afterwards")
        except BudgetError:
            if not read.closed:
                yield "refused"
        mended = ledger_in(folder).spent()
        if not _covers(mended, least) or mended.closed != read.closed:
            yield "lost"
    except LedgerError:
        yield "refused"


def _behind_the_head(folder: Path, files: Files, least: Spending, *, whole: bool) -> Iterator[str]:
    """The head says there was more: refused, unless no more than the last newline is missing."""
    try:
        read = _spent(folder, files)
    except LedgerError:
        if whole:
            yield "refused"
        return
    if not whole:
        yield "accepted"
    if not _covers(read, least):
        yield "lost"


def _covers(read: Spending, least: Spending) -> bool:
    """Whether at least so much is spent: epsilon and each plan's steps, or all that remained."""
    steps = {key: plan.reserved["generator"] for key, plan in read.plans.items()}
    kept = all(steps.get(key, 0) >= plan.reserved["generator"] for key, plan in least.plans.items())
    return read.closed or (read.epsilon >= least.epsilon and read.delta >= least.delta and kept)


def _spent(folder: Path, files: Files) -> Spending:
    _put(folder / "ledger.jsonl", files.ledger)
    _put(folder / "ledger.head", files.head)
    if not files.head:
        (folder / "ledger.head").unlink()
    return ledger_in(folder).spent()


def _put(path: Path, data: bytes) -> None:
    """Write in place: emptying a file first makes some disks wait."""
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as file:
        file.write(data)
        file.truncate()


def _open(ledger: Ledger, run: str, epsilon: float) -> None:
    ledger.open_plan(run, PLAN, MAPPING, epsilon=epsilon, delta=1e-6, limit=LIFETIME)


def _tear_and_mend(folder: Path, ledger: Ledger) -> None:
    """A line torn after its amount, and mended by the next look at the ledger."""
    place, head = folder / "ledger.jsonl", (folder / "ledger.head").read_bytes()
    before = place.read_bytes()
    ledger.reserve("run-0", PLAN, "generator", 3, "torn")
    place.write_bytes(place.read_bytes()[:-90])
    (folder / "ledger.head").write_bytes(head)
    assert place.read_bytes().startswith(before)
    _open(ledger, "run-0", 1.5)  # opened already: nothing but the mending is written


def cut_all(folder: Path) -> Counter[str]:
    """All pairs of last lines, each in a ledger of its own."""
    found: Counter[str] = Counter()
    for number, last_two in enumerate(LAST_TWO):
        place = folder / f"cuts-{number}"
        found += cut(place, last_two)
        shutil.rmtree(place)
    return found
