"""The rounds of one stage: Flower's loop around our strategy, with EMA and a checkpoint after each round."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fedmedgen.errors import FederationError, SpentError
from fedmedgen.federation import messages, plan
from fedmedgen.federation.egress import Arrays
from fedmedgen.federation.plan import Stage
from fedmedgen.privacy.budget import Plan
from fedmedgen.training.ema import ema
from server import membership
from server.public_arrays import ServerPart
from server.run_store import Checkpoint, RunStore
from server.strategy import GuardedStrategy, Member, Outcome, flower_strategy
from server.streaming import OneAtATime

logger = logging.getLogger(__name__)

FLOWER_STATE = {"momentum": "m_t", "variance": "v_t"}


@dataclass
class Rounds:
    """What the stages of one run share: the store, the members, the plan, and the rows written so far."""

    store: RunStore
    members: list[Member]
    noise: Mapping[str, float]  # noise multiplier by stage
    agreed: Plan | None
    rows: list[dict[str, Any]] = field(default_factory=list)
    seconds_before: float = 0.0
    started: float = field(default_factory=time.monotonic)
    before: list[Member] = field(default_factory=list)  # who took part before the run went on
    find_newcomers: Callable[[Sequence[Member]], list[Member]] = lambda _: []  # before each round of a deployment

    @property
    def simulation(self) -> bool:
        """Whether any site's noise is seeded, so that whoever knows the seed can subtract it."""
        return self.store.settings.simulated or any(member.simulation for member in self.everyone)

    @property
    def everyone(self) -> list[Member]:
        """All sites whose patients may be in the model, those that are away included."""
        return membership.everyone(self.members, self.before, self.rows)

    def remember(self) -> None:
        """Take up who took part before, and write down everyone."""
        self.members, self.before = membership.remembered(self.store, self.members)

    @property
    def seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.started

    def newcomers(self, stage: str) -> list[Member]:
        """Sites that have come since, as members from now on; those that have something for the stage."""
        fresh = self.find_newcomers(self.members)
        self.members = sorted([*self.members, *fresh], key=lambda member: member.site)
        if fresh:
            self.remember()
        return [member for member in fresh if member.weight(stage)]

    def request_config(self, stage: Stage) -> ConfigRecord:
        """What goes with the arrays of every round of a stage."""
        noise, first = plan.of_rounds(self.noise), self.noise.get(plan.STATISTICS, 0.0)
        return messages.request_config(self.store.run, stage.name, self.store.settings, noise, first)

    def note(self, stage: Stage, number: int, outcomes: Sequence[Outcome]) -> None:
        """One row for each site's part in a round."""
        epsilon, patients = self.epsilon_after(stage, number), {member.site: member.patients for member in self.members}
        untimed = {} if self.store.settings.simulated else {"seconds": ""}  # a real site's may depend on its patients
        self.rows += [
            _row(stage.name, number, outcome, patients[outcome.site], epsilon) | untimed for outcome in outcomes
        ]

    def epsilon_after(self, stage: Stage, number: int) -> float | None:
        """Epsilon of the run so far at each site: earlier stages whole, this one up to round `number`."""
        if self.agreed is None:
            return None
        steps: dict[str, int] = {}
        for known in plan.stages(self.store.settings):
            if known.name == stage.name:
                steps[stage.name] = number * stage.steps * stage.attempts
                break
            steps[known.name] = known.total_steps
        return self.agreed.epsilon_after(steps)


def run_stage(  # noqa: PLR0913  (what a stage takes; the last by name)
    grid: Grid,
    rounds: Rounds,
    stage: Stage,
    initial: Arrays,
    kept: dict[str, Arrays],
    latest: Checkpoint | None,
    *,
    reply_shapes: Mapping[str, tuple[int, ...]] | None = None,
    part: ServerPart | None = None,
) -> Arrays:
    """Run what is left of a stage; the averaged (EMA) weights at its end.

    `kept` are arrays of earlier stages that each checkpoint carries along; `latest` is this stage's last checkpoint;
    `reply_shapes` are those of a reply that is no update of `initial`, then what the one round left asks, and a
    plain average is taken. A stage ends early where crashes have cost its sites the steps of its last rounds.
    `part` is what the stage has beside the weights; it is then as the last round left it.
    """
    part = part or ServerPart()
    weights, averaged, done = initial, None, 0
    if latest is not None:
        weights, averaged, done = latest.groups["weights"], latest.groups["ema"], latest.round
        part.restore(latest.groups)
    if done >= stage.rounds:
        return averaged if averaged is not None else weights
    if reply_shapes is not None:
        weights, averaged = initial, None
    strategy = _strategy(rounds, stage, latest, reply_shapes)
    strategy.courier.load(part.public)
    after = _AfterRound(rounds, stage, strategy, kept, averaged, part)
    in_turn: Any = OneAtATime(grid, strategy.again)
    try:
        strategy.start(
            in_turn,
            messages.as_flowers(weights),
            num_rounds=stage.rounds - done,
            timeout=rounds.store.settings.federation.round_seconds,
            train_config=rounds.request_config(stage),
            evaluate_fn=after,
        )
    except FederationError as error:
        after.note(strategy.round)  # what was asked may have been spent, so the failed round counts
        rounds.store.write_rows(rounds.rows)
        if not (isinstance(error, SpentError) and after.averaged is not None):
            raise
        logger.warning("%s ends before round %d: %s", stage.name, strategy.round, error)
    assert after.averaged is not None
    return after.averaged


def _strategy(
    rounds: Rounds, stage: Stage, latest: Checkpoint | None, reply_shapes: Mapping[str, tuple[int, ...]] | None
) -> GuardedStrategy:
    members = [member for member in rounds.members if member.weight(stage.name)]
    if not members:
        raise FederationError(f"no site declares a case for the {stage.name}: give it masks, or leave the stage out")
    federation = rounds.store.settings.federation
    quorum = min(federation.min_sites, len(members))  # where fewer sites hold masks, all that do
    federation = replace(federation, min_sites=quorum)
    inner = flower_strategy(replace(federation, strategy="fedavg") if reply_shapes else federation, len(members))
    for group, attribute in FLOWER_STATE.items():
        if latest is not None and group in latest.groups:
            setattr(inner, attribute, latest.groups[group])
    return GuardedStrategy(
        inner,
        members,
        federation,
        stage=stage.name,
        rounds_done=latest.round if latest is not None else 0,
        on_sent=lambda number: show(rounds, stage, number - 1),
        reply_shapes=reply_shapes,
        newcomers=lambda: rounds.newcomers(stage.name),
    )


@dataclass
class _AfterRound:
    """Flower's hook after each round: average, take the server's own step, write the rows, checkpoint."""

    rounds: Rounds
    stage: Stage
    strategy: GuardedStrategy
    kept: dict[str, Arrays]
    averaged: Arrays | None
    part: ServerPart

    def __call__(self, server_round: int, arrays: ArrayRecord) -> None:
        if server_round == 0:
            return
        number = server_round + self.strategy.rounds_done
        weights = messages.unpack_arrays(arrays)
        self.averaged = averaged_with(self.averaged, weights, self.rounds.store.settings.generator.ema_decay)
        self.note(number)
        if self.part.step is not None:
            self.part.step(number, weights, self.part)
            self.strategy.courier.load(self.part.public)
        groups = {**self.kept, **self.part.groups(), "weights": weights, "ema": self.averaged}
        for group, attribute in FLOWER_STATE.items():
            if state := getattr(self.strategy.inner, attribute, None):
                groups[group] = {key: np.asarray(value) for key, value in state.items()}
        self.rounds.store.save(Checkpoint(self.stage.name, number, groups, self.rounds.rows, self.rounds.seconds))
        show(self.rounds, self.stage, number)

    def note(self, number: int) -> None:
        """One row for each site's part in a round."""
        self.rounds.note(self.stage, number, self.strategy.outcomes)


def averaged_with(old: Arrays | None, new: Arrays, decay: float) -> Arrays:
    if old is None:
        return new
    return {key: _mixed(old[key], value, decay) for key, value in new.items()}


def _mixed(old: NDArray[np.float32], new: NDArray[np.float32], decay: float) -> NDArray[np.float32]:
    of_old, of_new = ({"": torch.from_numpy(value.copy())} for value in (old, new))
    return np.asarray(ema(of_old, of_new, decay)[""].numpy())


def _row(stage: str, number: int, outcome: Outcome, patients: int, epsilon: float | None) -> dict[str, Any]:
    return {
        "stage": stage,
        "round": number,
        "site": outcome.site,
        "status": outcome.status,
        "reason": outcome.reason,
        "patients_declared": patients,
        "epsilon": "" if epsilon is None else epsilon,
        "loss": "" if outcome.loss is None else outcome.loss,
        "bytes_up": outcome.bytes_up,
        "bytes_down": outcome.bytes_down,
        "bits_per_number": outcome.bits or "",
        "seconds": round(outcome.seconds, 3),
        "update_norm": "" if outcome.update_norm is None else outcome.update_norm,
    }


def show(rounds: Rounds, stage: Stage, number: int) -> None:
    last = [row for row in rounds.rows if row["stage"] == stage.name and row["round"] == number]
    losses = [float(row["loss"]) for row in last if row["loss"] != ""]
    rounds.store.report_progress(
        stage=stage.name,
        round=number,
        rounds=stage.rounds,
        sites=[member.site for member in rounds.members],
        usable=sum(row["status"] == "done" for row in last),
        loss=sum(losses) / len(losses) if losses else None,
        epsilon=rounds.epsilon_after(stage, number),
        seconds=round(rounds.seconds, 1),
    )
