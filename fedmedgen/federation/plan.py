"""What a study asks of each site, stage by stage, and the privacy plan that follows from it."""

import math
from dataclasses import dataclass

from fedmedgen.errors import BudgetError, PolicyError
from fedmedgen.privacy import accountant
from fedmedgen.privacy.budget import Plan
from fedmedgen.privacy.mechanism import StagePlan
from fedmedgen.settings import Settings

GENERATOR = "generator"
SEGMENTER = "segmenter"


@dataclass(frozen=True)
class Stage:
    """One stage of rounds: `steps` optimiser steps at each site in each of `rounds` rounds."""

    name: str
    rounds: int
    steps: int
    learning_rate: float

    @property
    def total_steps(self) -> int:
        return self.rounds * self.steps


def stages(settings: Settings) -> tuple[Stage, ...]:
    """The stages of a study, in order; the segmenter only where there are masks."""
    privacy, private = settings.privacy, settings.private
    rate = privacy.learning_rate
    generator = Stage(
        GENERATOR,
        settings.rounds,
        privacy.generator_steps if private else settings.generator.local_steps,
        rate if private else settings.generator.learning_rate,
    )
    segmenter = Stage(
        SEGMENTER,
        settings.segmenter.rounds,
        privacy.segmenter_steps if private else settings.segmenter.local_steps,
        rate if private else settings.segmenter.learning_rate,
    )
    return (generator, segmenter) if settings.segmenter.rounds and settings.data.mask_classes else (generator,)


def stage_named(settings: Settings, name: str) -> Stage:
    return next(stage for stage in stages(settings) if stage.name == name)


def noise_multiplier(settings: Settings) -> float:
    """The one sigma for all stages that keeps the whole run within (epsilon, delta); 0 without privacy."""
    if not settings.private:
        return 0.0
    parts = tuple((settings.privacy.sample_rate, stage.total_steps) for stage in stages(settings))
    return accountant.calibrate(parts, epsilon=settings.privacy.epsilon, delta=settings.privacy.delta)


def plan(settings: Settings, *, noise: float, patients: int, labelled: int) -> Plan:
    """The plan a site fixes in its ledger before the first event; `patients` and `labelled` are public counts."""
    counts = {GENERATOR: patients, SEGMENTER: labelled}
    return Plan(
        stages=tuple(
            StagePlan(
                name=stage.name,
                sample_rate=settings.privacy.sample_rate,
                noise_multiplier=noise,
                clip_norm=settings.privacy.clip_norm,
                steps=stage.total_steps,
                denominator_patients=max(1, counts[stage.name]),
            )
            for stage in stages(settings)
        ),
        delta=settings.privacy.delta,
    )


def check_claim(settings: Settings, agreed: Plan) -> None:
    """Hold the noise that came with a request against what the same request promises; noise is the server's word.

    **Raises** `PolicyError` if the plan, whole schedule and all stages, costs more than the study's own epsilon.
    """
    try:
        agreed.require_within(settings.privacy.epsilon)
    except BudgetError as error:
        raise PolicyError(f"the request's noise doesn't keep the epsilon that it claims: {error}") from error


def rounded_up(count: int) -> int:
    """A public count for the patients of a simulated site: the next multiple of 10. Real sites write theirs by hand."""
    return 10 * math.ceil(count / 10)
