"""A site's record of everything it has promised to spend, written and synced before anything is computed.

Standard library only, so that a site can read what guards its budget.
"""

import contextlib
import fcntl
import logging
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from fedmedgen.errors import BudgetError, LedgerError
from fedmedgen.privacy.chain import (
    Chain,
    Head,
    check_head,
    digest_of,
    mending_event,
    read_chain,
    sealed_line,
)
from fedmedgen.privacy.head import draft_head, make_folder, read_head, settle_head, sync_folder, unwritable
from fedmedgen.privacy.new_ledger import missing
from fedmedgen.privacy.site_key import load_key, load_or_create_key
from fedmedgen.privacy.spending import Limit, Spending, replay, torn_cost

__all__ = ["Ledger", "Limit", "head_beside", "load_key", "load_or_create_key", "spending_in"]

logger = logging.getLogger(__name__)

REMEMBERED = 64  # ledgers

_checked: dict[tuple[Path, bytes | None], Chain] = {}  # by this process, under this key


def head_beside(path: Path) -> Path:
    """Where the head of a ledger is kept unless the policy says otherwise."""
    return path.with_suffix(".head")


def spending_in(path: Path, *, key: bytes | None, head_path: Path | None) -> Spending:
    """What a ledger file says was spent, read without changing it; None leaves the MACs or the head unchecked.

    **Raises** `LedgerError` if the record isn't whole.
    """
    data, pinned = _both(path, key, head_path)
    chain = _read(path, data, key)
    if head_path:
        check_head(chain, pinned)
    spending = replay(chain.events)
    spending.add_torn(torn_cost(chain.torn) if chain.torn else None)
    return spending


def _both(path: Path, key: bytes | None, head_path: Path | None) -> tuple[bytes, Head | None]:
    """Ledger and head as they were at one moment, or the head of a ledger that isn't there."""
    pinned = None
    for _ in range(2):  # a head that is found without a ledger may be that of a first line written meanwhile
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            return file.read(), read_head(head_path, key) if head_path else None
        pinned = read_head(head_path, key) if head_path else None
    return b"", pinned


def _read(path: Path, data: bytes, key: bytes | None) -> Chain:
    """The chain; what this process has checked before, byte for byte, is not checked again."""
    chain = read_chain(data, key, _checked.pop((path, key), None))
    if len(_checked) >= REMEMBERED:
        _checked.clear()
    _checked[path, key] = chain
    return chain


class Ledger:
    """The append-only chain of one site.

    **Guarantee** Each change is one lock over read, check, append and fsync, so of two processes that want the last of
    the budget exactly one gets it; what was reserved stays spent whatever happens afterwards.
    """

    def __init__(self, path: Path, *, key: bytes, head_path: Path, made: bool = False) -> None:
        """`made`: file and head were made by a person (`create_ledger`), and are never made anew here."""
        self._path, self._key, self._head_path, self._made = path, key, head_path, made

    def open_plan(  # noqa: PLR0913  (what a plan is; the last four by name)
        self,
        run: str,
        digest: str,
        mapping: Mapping[str, Any],
        *,
        epsilon: float,
        delta: float,
        limit: Limit,
        alone: float | None = None,
    ) -> None:
        """Count a plan in full against the site's lifetime limit; free if this run has this plan open already.

        `alone` is its epsilon if all other sites collude, where sites share the noise.

        **Raises** `BudgetError` if all plans together exceed the limit of the day; `LedgerError` if the digest
        isn't the mapping's or a number isn't one.
        """
        if digest != digest_of(mapping):
            raise LedgerError("the plan's digest isn't that of its mapping: pass Plan.digest with Plan.to_mapping()")
        amounts = {"epsilon": epsilon, "delta": delta, **({} if alone is None else {"alone": alone})}
        for name, value in [*amounts.items(), *limit.to_mapping().items()]:
            if not (isinstance(value, (int, float)) and math.isfinite(value) and value >= 0):
                raise LedgerError(f"{name} must be a finite number of at least 0; got {value!r}")
        with self._locked() as writer:
            if writer.spending.has_plan(run, digest):
                writer.spending.refuse_above(limit)
                return
            writer.spending.refuse_if_closed()
            writer.spending.refuse_beyond(limit, epsilon=epsilon, delta=delta)
            writer.spending.refuse_alone_beyond(limit, alone=epsilon if alone is None else alone)
            event = {"event": "open", **amounts, "run": run, "plan": digest}
            writer.append({**event, "mapping": mapping, "limit": limit.to_mapping()})

    def reserve(self, run: str, plan_digest: str, stage: str, steps: int, request: str) -> None:
        """Spend steps of an open plan on a request, before anything is computed.

        **Raises** `BudgetError` if the plan isn't open or the stage hasn't that many steps left.
        """
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise LedgerError(f"steps must be a whole number of at least 1; got {steps!r}")
        with self._locked() as writer:
            writer.spending.refuse_if_closed()
            left = writer.spending.steps_left(run, plan_digest, stage)
            if steps > left:
                raise BudgetError(f"stage {stage!r} of run {run!r} has {left} steps left in its plan; {steps} wanted")
            event = {"event": "reserve", "steps": steps, "run": run, "plan": plan_digest, "stage": stage}
            writer.append({**event, "request": request})

    def complete(self, request: str, reply_hash: str) -> None:
        """Note that the reply to a reserved request is stored and may be sent again, free; noting it twice is no harm.

        **Raises** `LedgerError` if nothing is reserved for the request.
        """
        with self._locked() as writer:
            state = writer.spending.requests.get(request, "unknown")
            if writer.spending.replies.get(request) == reply_hash:
                return
            if state != "reserved":
                raise LedgerError(f"only a reserved request can be completed; this one is {state}: reserve it first")
            writer.append({"event": "complete", "request": request, "reply": reply_hash})

    def find(self, request: str) -> Literal["unknown", "reserved", "complete"]:
        """Whether a request is new, spent without a stored reply, or answered."""
        return self.spent().requests.get(request, "unknown")

    def steps_reserved(self, run: str, digest: str) -> dict[str, int]:
        """Steps spent of each stage of a plan; empty if this run hasn't opened it."""
        plan = self.spent().plans.get((run, digest))
        return dict(plan.reserved) if plan else {}

    def spent(self) -> Spending:
        """Everything spent so far, a torn last line's cost included."""
        return spending_in(self._path, key=self._key, head_path=self._head_path)

    @contextlib.contextmanager
    def _locked(self) -> Iterator["_Writer"]:
        handle = self._opened()
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            pinned = read_head(self._head_path, self._key)
            if self._made and pinned is None:
                raise missing("ledger's head", self._head_path)
            chain = _read(self._path, _whole(handle), self._key)
            check_head(chain, pinned)
            writer = _Writer(handle, self._head_path, self._key, chain)
            writer.mend(pinned)
            yield writer
        finally:
            os.close(handle)

    def _opened(self) -> int:
        """The ledger's file, made together with its folder and the head's where they aren't there yet."""
        place = self._head_path.parent
        try:
            if self._made:
                return os.open(self._path, os.O_RDWR | os.O_APPEND)
            make_folder(place)
            place = self._path
            make_folder(place.parent)
            is_new = not place.exists()
            handle = os.open(place, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
            if is_new:
                sync_folder(place.parent)
        except OSError as fault:
            if self._made and isinstance(fault, FileNotFoundError):
                raise missing("ledger", self._path) from fault
            raise unwritable(place, fault) from fault
        return handle


class _Writer:
    """The chain while its lock is held."""

    def __init__(self, handle: int, head_path: Path, key: bytes, chain: Chain) -> None:
        self._handle, self._head_path, self._key = handle, head_path, key
        self._head: Head = chain.head
        self._chain = chain
        self.spending = replay(chain.events)

    def mend(self, pinned: Head | None) -> None:
        """Bring head and last line in order after a crash."""
        if self._chain.lacks_newline:
            _write(self._handle, b"\n")
        if self._head.count and pinned != self._head:
            settle_head(draft_head(self._head_path, self._head, self._key), self._head_path)
        if self._chain.torn:
            cost = torn_cost(self._chain.torn)
            logger.warning(
                "line %d of the ledger was torn by a crash; it is counted as %s", self._chain.last_line, dict(cost)
            )
            self.append(mending_event(self._chain.torn, cost), before=b"\n")
            self.spending.add_torn(cost)

    def append(self, event: Mapping[str, Any], before: bytes = b"") -> None:
        """Write and sync one event, then the head, whose draft shows first whether it can be written."""
        line, head = sealed_line({**event, "at": int(time.time())}, self._head, self._key)
        draft = draft_head(self._head_path, head, self._key)
        _write(self._handle, before + line)
        settle_head(draft, self._head_path)
        self._head = head


def _whole(handle: int) -> bytes:
    os.lseek(handle, 0, os.SEEK_SET)
    pieces = []
    while piece := os.read(handle, 1 << 20):
        pieces.append(piece)
    return b"".join(pieces)


def _write(handle: int, data: bytes) -> None:
    """Append and sync, or raise `LedgerError`: then nothing may be computed."""
    try:
        while data:
            data = data[os.write(handle, data) :]
        os.fsync(handle)
    except OSError as fault:
        raise LedgerError(f"the ledger could not be written ({fault.strerror}): nothing was reserved") from fault
