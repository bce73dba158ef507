"""Kill a site or its ledger at random moments, and after each death compare the ledger with the witness."""

import json
import random
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from fedmedgen.errors import BudgetError, LedgerError
from fedmedgen.privacy.chain import Head, digest_of, sealed_line
from fedmedgen.privacy.head import read_head
from fedmedgen.privacy.ledger import load_key
from fedmedgen.privacy.spending import Spending
from simulations.campaigns.fork import Moment, killed
from simulations.campaigns.victims import MAPPING, STEPS, Asking, LedgerAlone, Subject, answer, ledger_in

SITE, LEDGER, SHORT, MENDING = "site", "ledger alone", "ledger, short writes", "mending a torn line"
KINDS = (SITE, SITE, LEDGER, SHORT, MENDING)  # of one life after the other
FAULTS = {
    "lost_spend": "lost spends: patients touched, no spend in the ledger",
    "refused": "good chains refused",
    "differing": "replies differing on replay",
    "paid_twice": "double payments: a replay, or a request asked once, spent again",
    "free": "rounds computed anew without a new spend",
    "unreserved": "replies whose reservation is missing",
    "fell": "spend that fell, or a closed ledger that opened",
    "raised": "other errors",
}
ROUNDS_A_KILL, KILLS_A_RUN = 3, 3
Row = dict[str, Any]


@dataclass
class Witness:
    """What the marks of all deaths say, outside the ledger."""

    asked: Counter[str] = field(default_factory=Counter)
    touched: Counter[str] = field(default_factory=Counter)
    touched_in: Counter[str] = field(default_factory=Counter)  # by run
    rounds: dict[str, tuple[str, int]] = field(default_factory=dict)
    replies: dict[str, str] = field(default_factory=dict)
    last: str = ""

    def take(self, mark: str) -> None:
        kind, *words = mark.split()
        if kind == "asked":
            self.last = words[0]
            self.asked[words[0]] += 1
            self.rounds[words[0]] = (words[1], int(words[2]))
        elif kind == "touch":
            self.touched[words[0]] += 1
            self.touched_in[words[1]] += 1
        elif kind == "reply":
            self.replies[words[0]] = words[1]

    @property
    def interrupted(self) -> str:
        """The request that was being answered, or nothing."""
        return "" if self.last in self.replies else self.last


@dataclass
class Trial:
    """One state folder, and all that was witnessed of it; `faults` are those of the last kill."""

    kind: str
    subject: Subject
    witness: Witness = field(default_factory=Witness)
    faults: Counter[str] = field(default_factory=Counter)

    @classmethod
    def fresh(cls, kind: str, asking: Asking, folder: Path) -> "Trial":
        trial = cls(kind, asking.made(folder) if kind == SITE else LedgerAlone(folder))
        if kind == MENDING:
            trial.ask("run-0", 0)  # a plan whose steps the torn line is for
        return trial

    @property
    def ledger(self) -> Path:
        return self.subject.folder / "ledger.jsonl"

    def kill(self, coins: random.Random, number: int) -> Row:
        """One death, and what was found after it."""
        self.faults = Counter()
        if self.kind == MENDING:
            self._tear(coins)
        before = self._spending()
        run, place = divmod(number, KILLS_A_RUN)
        rounds = [(f"run-{run}", ROUNDS_A_KILL * place + later) for later in range(1, ROUNDS_A_KILL + 1)]
        if self.witness.interrupted and coins.random() < 0.5:
            rounds.insert(0, self.witness.rounds[self.witness.interrupted])
        torn = random.Random(coins.random()) if self.kind in (SHORT, MENDING) else None
        most = 10 if self.kind == MENDING else 30
        marks = killed(partial(answer, self.subject, rounds, torn=torn), Moment.drawn(coins, most_marks=most))
        for mark in marks:
            self.witness.take(mark)
            self._note_raised(mark, before)
        after = self._spending()
        if before and after:
            self._compare(before, after)
        torn_line = self.ledger.is_file() and self.ledger.read_bytes()[-1:] not in (b"", b"\n")
        if after and not after.closed:
            self._ask_again(coins)
        return {
            "kind": self.kind, "doing": _doing(marks[-1]) if marks else "starting", "torn": int(torn_line),
            "closed": int(after is None or after.closed), **{name: self.faults[name] for name in FAULTS},
        }  # fmt: skip

    def ask(self, run: str, number: int) -> str:
        """Ask for a round in this process, which isn't killed."""
        request = self.subject.name(run, number)
        self.witness.take(f"asked {request} {run} {number}")
        reply = self.subject.ask(run, number, self.witness.take)
        self.witness.take(f"reply {request} {reply}")
        return reply

    def _spending(self) -> Spending | None:
        """The ledger read and verified with key and head."""
        try:
            return ledger_in(self.subject.folder).spent()
        except LedgerError:
            self.faults["refused"] += 1
            return None

    def _note_raised(self, mark: str, before: Spending | None) -> None:
        if mark.startswith("raised BudgetError") and before is not None and before.closed:
            return
        if mark.startswith("raised "):
            self.faults["refused" if "LedgerError" in mark else "raised"] += 1

    def _compare(self, before: Spending, after: Spending) -> None:
        """The ledger against the witness, and against itself before the death."""
        reserved = self.reserved()
        seen = self.witness
        self.faults["unreserved"] += sum(not reserved[request] for request in seen.replies)
        self.faults["paid_twice"] += sum(count > seen.asked[request] for request, count in reserved.items())
        self.faults["fell"] += after.epsilon < before.epsilon or (before.closed and not after.closed)
        if after.closed:
            return
        self.faults["lost_spend"] += sum(count > reserved[request] for request, count in seen.touched.items())
        steps = {plan.run: plan.reserved["generator"] for plan in after.plans.values()}
        self.faults["lost_spend"] += sum(count * STEPS > steps.get(run, 0) for run, count in seen.touched_in.items())
        self.faults["fell"] += sum(
            after.plans[key].reserved["generator"] < plan.reserved["generator"] for key, plan in before.plans.items()
        )

    def reserved(self) -> Counter[str]:
        """How often each request is reserved, by the lines as they stand."""
        if not self.ledger.is_file():
            return Counter()
        lines = [line for line in self.ledger.read_bytes().split(b"\n") if line.endswith(b"}") and b"reserve" in line]
        return Counter(json.loads(line)["request"] for line in lines)

    def _ask_again(self, coins: random.Random) -> None:
        """A request that was answered: the same bytes, free. One that wasn't: a spend, and only one."""
        try:
            if self.witness.replies:
                self._replay(list(self.witness.replies)[-1])
            if self.witness.interrupted and coins.random() < 0.5:
                self._finish(self.witness.interrupted)
        except BudgetError:
            self.faults["raised"] += not ledger_in(self.subject.folder).spent().closed
        except LedgerError:
            self.faults["refused"] += 1

    def _replay(self, request: str) -> None:
        size = self.ledger.stat().st_size
        reply = self.subject.ask(*self.witness.rounds[request], self.witness.take)
        self.faults["differing"] += reply != self.witness.replies[request]
        self.faults["paid_twice"] += self.ledger.stat().st_size != size

    def _finish(self, request: str) -> None:
        run, number = self.witness.rounds[request]
        stored, paid = self.subject.stored(run, number), self.reserved()[request]
        reply = self.ask(run, number)
        more = self.reserved()[request] - paid
        self.faults["differing"] += stored is not None and reply != stored
        self.faults["free"] += stored is None and more < 1
        self.faults["paid_twice"] += more > (stored is None)
        self._replay(request)

    def _tear(self, coins: random.Random) -> None:
        """Leave the ledger as a crash within its next line would."""
        self.subject.folder.mkdir(parents=True, exist_ok=True)
        ledger_in(self.subject.folder)
        key = load_key(self.subject.folder / "site.key")
        head = read_head(self.subject.folder / "ledger.head", key) or Head(0, "0" * 64)
        event: dict[str, Any] = {"event": "reserve", "steps": STEPS, "run": "run-0", "plan": digest_of(MAPPING)}
        line, _ = sealed_line({**event, "stage": "generator", "request": "torn", "at": 0}, head, key)
        with self.ledger.open("ab") as file:
            file.write(line[: coins.randint(1, len(line) - 1)])


def _doing(mark: str) -> str:
    first = mark.split()[0]
    return {"asked": "asked", "touch": "reading patients", "reply": "replied", "raised": "refused"}.get(first, mark)


def life(kind: str, number: int, kills: int, asking: Asking, coins: random.Random) -> list[Row]:
    """So many kills of one kind, in one state folder, or in fresh ones where a torn line closed the ledger."""
    rows: list[Row] = []
    trial = None
    for kill in range(kills):
        if trial is None:
            trial = Trial.fresh(kind, asking, asking.folder / f"life-{number}-{kill}")
        row = trial.kill(coins, kill)
        rows.append({"life": number, "kill": kill, **row})
        if row["closed"]:
            trial = None
    return rows
