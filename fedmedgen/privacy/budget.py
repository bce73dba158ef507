"""A plan: all stages of one run with their noise, and the epsilon that follows from them."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fedmedgen.errors import BudgetError
from fedmedgen.privacy import accountant
from fedmedgen.privacy.chain import digest_of
from fedmedgen.privacy.mechanism import StagePlan
from fedmedgen.schema import from_mapping, require


@dataclass(frozen=True)
class Plan:
    """What a site has agreed to run, fixed before its first step; claim and mechanism are one object."""

    stages: tuple[StagePlan, ...]
    delta: float

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
        return accountant.epsilon(self._parts(steps_by_stage), self.delta)

    @property
    def parts(self) -> accountant.Parts:
        """The plan as the accountant composes it: (sample rate, noise multiplier, steps) of each stage."""
        return self._parts({stage.name: stage.steps for stage in self.stages})

    @property
    def digest(self) -> str:
        """The plan's name in the ledger: a hash of its canonical JSON."""
        return digest_of(self.to_mapping())

    def to_mapping(self) -> dict[str, Any]:
        return {"stages": [stage.to_mapping() for stage in self.stages], "delta": self.delta}

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> "Plan":
        return from_mapping(cls, mapping, "plan")

    def _parts(self, steps: Mapping[str, int]) -> accountant.Parts:
        return tuple((s.sample_rate, s.noise_multiplier, steps.get(s.name, 0)) for s in self.stages)
