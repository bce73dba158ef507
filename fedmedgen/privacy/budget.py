"""A plan: all stages of one run with their noise, and the epsilon that follows from them."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from fedmedgen.errors import BudgetError
from fedmedgen.privacy import accountant, skellam
from fedmedgen.privacy.chain import digest_of
from fedmedgen.privacy.mechanism import StagePlan
from fedmedgen.privacy.shared_noise import SharedNoise
from fedmedgen.schema import from_mapping, require

ROUNDING = 1e-9  # relative: a target written in decimals isn't missed by its last bit


@dataclass(frozen=True)
class Plan:
    """What a site has agreed to run, fixed before its first step; claim and mechanism are one object.

    With `shared` the noise is Skellam's, and all sites add it together: epsilon then holds against the server and as
    many colluding sites as `shared` says, `epsilon_alone` against all others.
    """

    stages: tuple[StagePlan, ...]
    delta: float
    shared: SharedNoise | None = None

    def __post_init__(self) -> None:
        names = [stage.name for stage in self.stages]
        require(bool(names) and len(set(names)) == len(names), "plan.stages", names, "one or more, each name once")
        require(0 < self.delta < 1, "plan.delta", self.delta, "between 0 and 1")
        object.__setattr__(self, "delta", float(self.delta))

    @cached_property
    def epsilon(self) -> float:
        """Epsilon at `delta` of every step of every stage."""
        return self.epsilon_after({stage.name: stage.steps for stage in self.stages})

    def epsilon_after(self, steps_by_stage: Mapping[str, int]) -> float:
        """Epsilon at `delta` of the steps taken so far; stages not named count none.

        **Raises** `BudgetError` for a stage the plan lacks, or more steps than it allows.
        """
        unknown = set(steps_by_stage) - {stage.name for stage in self.stages}
        if unknown:
            raise BudgetError(f"the plan has no stage {sorted(unknown)}; it has {[s.name for s in self.stages]}")
        for stage in self.stages:
            if not 0 <= steps_by_stage.get(stage.name, 0) <= stage.steps:
                raise BudgetError(
                    f"stage {stage.name!r} allows from 0 to {stage.steps} steps; got {steps_by_stage[stage.name]}"
                )
        return float(self._accountant.epsilon(self._parts(steps_by_stage), self.delta))

    @cached_property
    def epsilon_alone(self) -> float:
        """Epsilon where the server and all other sites collude: only the site's own part of the noise is left."""
        if self.shared is None:
            return self.epsilon
        own = tuple((rate, self.shared.alone(noise), steps) for rate, noise, steps in self.parts)
        return skellam.epsilon(own, self.delta)

    def require_within(self, epsilon: float) -> None:
        """Hold the plan against a budget at its own delta.

        **Raises** `BudgetError` with what the plan costs, how many of its steps fit, and the noise that all would need.
        """
        if self.epsilon <= epsilon * (1 + ROUNDING):
            return
        total = sum(stage.steps for stage in self.stages)
        factor = self._accountant.scale_needed(self.parts, epsilon=epsilon, delta=self.delta)
        asked = ", ".join(f"{s.name} {s.steps} at noise {s.noise_multiplier:.4g}" for s in self.stages)
        needed = ", ".join(f"{s.name} {_up(factor * s.noise_multiplier)}" for s in self.stages)
        raise BudgetError(
            f"the plan's steps ({asked}) cost epsilon {self.epsilon:.4g} at delta {self.delta:g}; {epsilon:.4g} is "
            f"allowed: at this noise the first {self.steps_within(epsilon)} of {total} steps fit, "
            f"or all with noise multipliers of at least {needed}"
        )

    def steps_within(self, epsilon: float) -> int:
        """How many of the plan's steps, its stages in order, stay within `epsilon`."""
        fits, over = 0, sum(stage.steps for stage in self.stages) + 1
        while over - fits > 1:
            middle = (fits + over) // 2
            fits, over = (middle, over) if self.epsilon_after(self._first(middle)) <= epsilon else (fits, middle)
        return fits

    @property
    def parts(self) -> accountant.Parts:
        """The plan as the accountant composes it: (sample rate, noise multiplier, steps) of each stage."""
        return self._parts({stage.name: stage.steps for stage in self.stages})

    @property
    def digest(self) -> str:
        """The plan's name in the ledger: a hash of its canonical JSON."""
        return digest_of(self.to_mapping())

    def to_mapping(self) -> dict[str, Any]:
        shared = {"shared": asdict(self.shared)} if self.shared else {}
        return {"stages": [stage.to_mapping() for stage in self.stages], "delta": self.delta, **shared}

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> "Plan":
        return from_mapping(cls, mapping, "plan")

    @property
    def _accountant(self) -> Any:
        return skellam if self.shared else accountant

    def _first(self, steps: int) -> dict[str, int]:
        """The plan's first so many steps, by stage."""
        taken: dict[str, int] = {}
        for stage in self.stages:
            taken[stage.name] = min(stage.steps, steps - sum(taken.values()))
        return taken

    def _parts(self, steps: Mapping[str, int]) -> accountant.Parts:
        return tuple((s.sample_rate, s.noise_multiplier, steps.get(s.name, 0)) for s in self.stages)


def _up(noise: float) -> str:
    """A noise multiplier in three decimals, never rounded below what is needed."""
    return f"{math.ceil(noise * 1000) / 1000:g}"
