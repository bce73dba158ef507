"""The best attacker on the mechanism as it runs reaches what the accountant says, and no more.

One patient with a huge gradient is there or not; the attacker knows everything else and weighs the released numbers by
their exact likelihood. Planted faults of the mechanism let him do better: then the claim would be false.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedmedgen.privacy import accountant, mechanism, per_patient
from fedmedgen.privacy.mechanism import StagePlan
from fedmedgen.privacy.per_patient import ReferenceEngine
from fedmedgen.privacy.randomness import Stream

STAGE = StagePlan(
    name="attacked", sample_rate=0.4, noise_multiplier=1.0, clip_norm=0.5, steps=4, denominator_patients=5
)
TRIALS = 1000
FALSE_POSITIVES = (0.05, 0.2, 0.5)
MARGIN = 4.5  # standard errors of the two empirical rates together


def dot_loss(model: nn.Module, rows: dict[str, Tensor]) -> Tensor:
    return model(rows["x"]).squeeze(1)


def evidence(stage: StagePlan, victim_is_there: bool, stream: Stream) -> NDArray[np.float64]:
    """The attacker's log-likelihood ratio in every trial."""
    engine = ReferenceEngine(nn.Linear(2, 1, bias=False), dot_loss)
    others = [{"x": torch.tensor([[0.0, 0.1]])}, {"x": torch.tensor([[0.0, -0.1]])}]
    patients = [*others, {"x": torch.tensor([[1000.0, 0.0]])}] if victim_is_there else others
    sums = np.empty((TRIALS, stage.steps))
    for trial in range(TRIALS):
        for step in range(stage.steps):
            chosen = [patients[index] for index in stage.draw(stream, len(patients))]
            (released,) = stage.release(engine.clipped_sum(chosen, stage.clip_norm), stream)
            sums[trial, step] = float(released[0, 0]) * STAGE.sample_rate * STAGE.denominator_patients
    shift, sd = STAGE.clip_norm, STAGE.noise_multiplier * STAGE.clip_norm
    present = np.exp(np.minimum((sums * shift - shift**2 / 2) / sd**2, 700))
    return np.log1p(STAGE.sample_rate * (present - 1)).sum(axis=1)


def excesses(stage: StagePlan) -> list[float]:
    """How far the attacker beats the claim, in standard errors, at each rate of false positives."""
    absent = evidence(stage, victim_is_there=False, stream=Stream.seeded(0, "absent"))
    there = evidence(stage, victim_is_there=True, stream=Stream.seeded(0, "there"))
    parts = ((STAGE.sample_rate, STAGE.noise_multiplier, STAGE.steps),)
    out = []
    for rate in FALSE_POSITIVES:
        threshold = np.quantile(absent, 1 - rate)
        claimed = accountant.true_positive_rate(parts, false_positive_rate=rate)
        slope = claimed / rate  # the curve is concave, so an error of the threshold moves it by less
        error = np.sqrt(claimed * (1 - claimed) / TRIALS) + slope * np.sqrt(rate * (1 - rate) / TRIALS)
        out.append(float((np.mean(there > threshold) - claimed) / error))
    return out


def test_the_attacker_reaches_what_is_claimed_and_no_more() -> None:
    assert all(abs(excess) < MARGIN for excess in excesses(STAGE))


def no_clip(monkeypatch: pytest.MonkeyPatch) -> StagePlan:
    def add_all(total: list[Tensor], gradient: list[Tensor], clip_norm: float) -> None:
        for part, own in zip(total, gradient, strict=True):
            part += own

    monkeypatch.setattr(per_patient, "add_clipped", add_all)
    return STAGE


def a_tenth_of_the_noise(monkeypatch: pytest.MonkeyPatch) -> StagePlan:
    return replace(STAGE, noise_multiplier=STAGE.noise_multiplier / 10)


def noise_without_the_clip_in_it(monkeypatch: pytest.MonkeyPatch) -> StagePlan:
    real = mechanism._noisy
    monkeypatch.setattr(
        mechanism, "_noisy", lambda part, *, scale, stream: real(part, scale=scale * STAGE.clip_norm, stream=stream)
    )
    return STAGE


def every_patient_in_every_step(monkeypatch: pytest.MonkeyPatch) -> StagePlan:
    monkeypatch.setattr(StagePlan, "draw", lambda *arguments: np.arange(arguments[-1]))
    return STAGE


@pytest.mark.parametrize(
    "plant", [no_clip, a_tenth_of_the_noise, noise_without_the_clip_in_it, every_patient_in_every_step]
)
def test_a_planted_fault_lets_the_attacker_beat_the_claim(
    plant: Callable[[pytest.MonkeyPatch], StagePlan], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert max(excesses(plant(monkeypatch))) > MARGIN
