"""Rounds of a stage whose sites share one noise: each is one step of DP-SGD over all patients, taken at the server."""

from dataclasses import dataclass, field

import numpy as np
from flwr.serverapp import Grid

from fedmedgen.errors import FederationError
from fedmedgen.federation.egress import Arrays
from fedmedgen.federation.plan import Stage
from fedmedgen.training.fit import BETAS, Schedule
from server.rounds import FLOWER_STATE, Rounds, averaged_with, show
from server.run_store import Checkpoint
from server.secure_sum import summed

TINY = 1e-8


@dataclass
class Adam:
    """Adam over the gradients that the rounds release, its state kept from one to the next.

    **Source** Kingma and Ba 2015.
    """

    momentum: Arrays = field(default_factory=dict)
    variance: Arrays = field(default_factory=dict)

    def step(self, weights: Arrays, gradient: Arrays, rate: float, number: int) -> Arrays:
        first, second = BETAS
        moved = {}
        for name, own in gradient.items():
            momentum = first * self.momentum.get(name, np.zeros_like(own)) + (1 - first) * own
            variance = second * self.variance.get(name, np.zeros_like(own)) + (1 - second) * own**2
            self.momentum[name], self.variance[name] = momentum, variance
            scale = np.sqrt(variance / (1 - second**number)) + TINY
            moved[name] = (weights[name] - rate * momentum / (1 - first**number) / scale).astype(np.float32)
        return moved


def run_shared_stage(
    grid: Grid, rounds: Rounds, stage: Stage, initial: Arrays, kept: dict[str, Arrays], latest: Checkpoint | None
) -> Arrays:
    """What is left of a stage; the averaged (EMA) weights at its end."""
    weights, averaged, done, adam = initial, None, 0, Adam()
    if latest is not None:
        weights, averaged, done = latest.groups["weights"], latest.groups["ema"], latest.round
        adam = Adam(*(latest.groups[group] for group in FLOWER_STATE))
    settings = rounds.store.settings
    shapes = {name: value.shape for name, value in initial.items()}
    for number in range(done + 1, stage.rounds + 1):
        show(rounds, stage, number - 1)
        try:
            gradient = summed(grid, rounds, stage, number, weights, shapes)
        except FederationError:
            rounds.store.write_rows(rounds.rows)
            raise
        schedule = Schedule(
            learning_rate=stage.learning_rate, first_step=number - 1, steps=1, total_steps=stage.rounds,
            decay=settings.generator.decay,
        )  # fmt: skip
        weights = adam.step(weights, gradient, schedule.rate(0), number)
        averaged = averaged_with(averaged, weights, settings.generator.ema_decay)
        state = dict(zip(FLOWER_STATE, (adam.momentum, adam.variance), strict=True))
        groups = {**kept, "weights": weights, "ema": averaged, **state}
        rounds.store.save(Checkpoint(stage.name, number, groups, rounds.rows, rounds.seconds))
    return averaged if averaged is not None else weights
