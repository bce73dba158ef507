"""What a ledger's events add up to: plans opened, steps reserved, requests answered. Standard library only."""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from fedmedgen.errors import BudgetError, LedgerError

State = Literal["unknown", "reserved", "complete"]

ROUNDING = 1e-9  # relative: sums of decimal epsilons don't fail by their last bit
ALL = {"all": True}
# An amount in a torn line counts as read only if the comma after it was written too.
KIND = re.compile(r'\{"n":\d+,"prev":"[0-9a-f]{64}","event":"(open|reserve|complete)",')
OPEN = re.compile(r'"epsilon":([0-9.eE+-]+),"delta":([0-9.eE+-]+),(?:"alone":([0-9.eE+-]+),|("run"))?')
RESERVE = re.compile(r'"steps":(\d+),"run":("[^"\\]*"),"plan":("[0-9a-f]{64}"),"stage":("[^"\\]*"),')


@dataclass(frozen=True)
class Limit:
    """What a site's policy allows for its whole lifetime; `alone`: of epsilon, if all other sites collude."""

    epsilon: float
    delta: float
    alone: float | None = None  # None where the site takes part in no secure sum

    def to_mapping(self) -> dict[str, float]:
        return {key: value for key, value in vars(self).items() if value is not None}


@dataclass
class PlanSpending:
    """One run's plan: what it counts for, and the steps spent of each stage."""

    run: str
    digest: str
    epsilon: float
    delta: float
    mapping: Mapping[str, Any]
    allowed: dict[str, int]
    reserved: dict[str, int]
    opened_at: int = 0
    alone: float = 0.0  # its epsilon if all other sites collude: more than epsilon where they share the noise


@dataclass
class Spending:
    """The state after all events; epsilons and deltas of plans add, since each was chosen after seeing the last."""

    plans: dict[tuple[str, str], PlanSpending] = field(default_factory=dict)
    requests: dict[str, State] = field(default_factory=dict)
    replies: dict[str, str] = field(default_factory=dict)  # hash of the stored reply of each complete request
    torn: list[tuple[float, float]] = field(default_factory=list)  # (epsilon, delta) of torn lines
    torn_alone: float = 0.0  # of those, if all other sites collude; infinite where it can't be read
    closed: bool = False  # a torn line's amount couldn't be read: all that remained is spent
    limit: Limit | None = None  # the policy's, when last a plan was opened
    lines: int = 0  # whole ones

    @property
    def epsilon(self) -> float:
        """Everything spent; at least the known limit where all that remained is spent."""
        total = math.fsum([p.epsilon for p in self.plans.values()] + [e for e, _ in self.torn])
        return max(total, self.limit.epsilon) if self.closed and self.limit else total

    @property
    def delta(self) -> float:
        """Everything spent; at least the known limit where all that remained is spent."""
        total = math.fsum([p.delta for p in self.plans.values()] + [d for _, d in self.torn])
        return max(total, self.limit.delta) if self.closed and self.limit else total

    @property
    def alone(self) -> float:
        """Everything spent, if all other sites collude."""
        return math.inf if self.closed else math.fsum([*(p.alone for p in self.plans.values()), self.torn_alone])

    def has_plan(self, run: str, digest: str) -> bool:
        return (run, digest) in self.plans

    def refuse_if_closed(self) -> None:
        """**Raises** `BudgetError` once a torn line has cost all that remained."""
        if self.closed:
            raise BudgetError(
                "a line of the ledger was torn by a crash and its amount can't be read, so all that remained is spent; "
                "a person may start a new ledger under a budget that counts this one in full"
            )

    def refuse_beyond(self, limit: Limit, *, epsilon: float, delta: float) -> None:
        """**Raises** `BudgetError` if a plan of so much would exceed the limit."""
        for name, wanted, spent, most in (
            ("epsilon", epsilon, self.epsilon, limit.epsilon),
            ("delta", delta, self.delta, limit.delta),
        ):
            if spent + wanted > most * (1 + ROUNDING):
                raise BudgetError(
                    f"the plan wants {name} {wanted:.6g}, but {spent:.6g} of this site's {most:.6g} is spent: "
                    f"{max(0.0, most - spent):.6g} is left; plan a smaller {name}, or have the policy's limit raised"
                )

    def refuse_alone_beyond(self, limit: Limit, *, alone: float) -> None:
        """**Raises** `BudgetError` if a plan of so much would exceed what may be spent if all other sites collude."""
        if limit.alone is not None and self.alone + alone > limit.alone * (1 + ROUNDING):
            raise BudgetError(
                f"the plan wants epsilon {alone:.6g} if all other sites collude, but {self.alone:.6g} of this site's "
                f"{limit.alone:.6g} is spent: plan a smaller one, or have secure_sum.lifetime_epsilon_alone raised"
            )

    def refuse_above(self, limit: Limit) -> None:
        """**Raises** `BudgetError` if more is spent than a limit that was lowered since."""
        alone = math.inf if limit.alone is None else limit.alone
        for name, spent, most in (
            ("epsilon", self.epsilon, limit.epsilon),
            ("delta", self.delta, limit.delta),
            ("epsilon, if all other sites collude,", self.alone, alone),
        ):
            if spent > most * (1 + ROUNDING):
                raise BudgetError(
                    f"{name} {spent:.6g} is spent, above the {most:.6g} that the site's policy now allows: plans that "
                    "are open have stopped, and go on only if the policy's limit is raised"
                )

    def steps_left(self, run: str, digest: str, stage: str) -> int:
        """**Raises** `BudgetError` if the run has no such plan open or the plan no such stage."""
        plan = self.plans.get((run, digest))
        if plan is None:
            raise BudgetError(f"run {run!r} has no plan {digest[:12]} open in this ledger: open the plan first")
        if stage not in plan.allowed:
            raise BudgetError(f"the plan has no stage {stage!r}; it has {sorted(plan.allowed)}")
        return plan.allowed[stage] - plan.reserved[stage]

    def add_torn(self, cost: Mapping[str, Any] | None) -> None:
        """Charge what a torn line costs."""
        if cost is None:
            return
        if "epsilon" in cost:
            self.torn.append((float(cost["epsilon"]), float(cost["delta"])))
            self.torn_alone += float(cost.get("alone", math.inf))
        elif "steps" in cost:
            self._charge_steps(cost)
        elif cost.get("nothing") is not True:
            self.closed = True

    def _charge_steps(self, cost: Mapping[str, Any]) -> None:
        plan = self.plans.get((str(cost["run"]), str(cost["plan"])))
        stage = str(cost["stage"])
        if plan is None or stage not in plan.allowed:
            self.closed = True
        else:
            plan.reserved[stage] = min(plan.allowed[stage], plan.reserved[stage] + int(cost["steps"]))


def replay(events: Iterable[Mapping[str, Any]]) -> Spending:
    """Add up checked events.

    **Raises** `LedgerError` naming the line of an event that makes no sense.
    """
    spending = Spending()
    for event in events:
        try:
            _apply(spending, event)
            spending.lines += 1
        except (KeyError, TypeError, ValueError) as fault:
            raise LedgerError(f"entry {event.get('n')} of the ledger lacks or garbles {fault}") from fault
    return spending


def torn_cost(torn: bytes) -> Mapping[str, Any]:
    """What a torn line costs: the amount that can be read in it, else all that remains."""
    text = torn.decode("utf-8", errors="replace")
    kind = KIND.match(text)
    if kind is None or "\n" in text:
        return ALL
    if kind[1] == "complete":
        return {"nothing": True}
    rest = text[kind.end() :]
    return _open_cost(rest) if kind[1] == "open" else _reserve_cost(rest)


def _open_cost(text: str) -> Mapping[str, Any]:
    found = OPEN.match(text)
    try:
        epsilon, delta = (float(found[1]), float(found[2])) if found else (math.inf, math.inf)
        alone = float(found[3] or epsilon) if found and (found[3] or found[4]) else math.inf
    except ValueError:
        return ALL
    readable = math.isfinite(epsilon) and math.isfinite(delta) and min(epsilon, delta) >= 0
    own = {"alone": max(alone, epsilon)} if math.isfinite(alone) else {}
    return {"epsilon": epsilon, "delta": delta, **own} if readable else ALL


def _reserve_cost(text: str) -> Mapping[str, Any]:
    found = RESERVE.match(text)
    if found is None:
        return ALL
    run, plan, stage = (json.loads(found[place]) for place in (2, 3, 4))
    return {"steps": int(found[1]), "run": run, "plan": plan, "stage": stage}


def _apply(spending: Spending, event: Mapping[str, Any]) -> None:
    kind = event["event"]
    if kind == "open":
        key = (str(event["run"]), str(event["plan"]))
        allowed = {str(stage["name"]): int(stage["steps"]) for stage in event["mapping"]["stages"]}
        spending.plans[key] = PlanSpending(
            *key,
            float(event["epsilon"]),
            float(event["delta"]),
            event["mapping"],
            allowed,
            dict.fromkeys(allowed, 0),
            int(event["at"]),
            float(event.get("alone", event["epsilon"])),
        )
        spending.limit = Limit(**{key: float(value) for key, value in event["limit"].items()})
    elif kind == "reserve":
        plan = spending.plans[str(event["run"]), str(event["plan"])]
        plan.reserved[str(event["stage"])] += int(event["steps"])
        spending.requests[str(event["request"])] = "reserved"
        spending.replies.pop(str(event["request"]), None)
    elif kind == "complete":
        spending.requests[str(event["request"])] = "complete"
        spending.replies[str(event["request"])] = str(event["reply"])
    elif kind == "torn":
        spending.add_torn(event["cost"])
    else:
        raise LedgerError(f"entry {event.get('n')} of the ledger is of an unknown kind {kind!r}")
