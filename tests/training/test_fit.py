"""Fitting, with and without privacy."""

import inspect

import pytest
import torch
from torch import Tensor, nn

from fedmedgen.privacy.mechanism import StagePlan
from fedmedgen.privacy.per_patient import ReferenceEngine
from fedmedgen.privacy.randomness import Stream
from fedmedgen.training.fit import Schedule, fit_ordinary, fit_private
from fedmedgen.training.rows import Rows

TRUTH = torch.tensor([[1.0, -2.0]])


def squared(model: nn.Module, rows: Rows) -> Tensor:
    error: Tensor = (model(rows["x"]) - rows["y"]).square().sum(dim=1)
    return error


def draw(generator: torch.Generator) -> Rows:
    x = torch.randn((16, 2), generator=generator)
    return {"x": x, "y": x @ TRUTH.T}


def line() -> nn.Linear:
    model = nn.Linear(2, 1, bias=False)
    nn.init.zeros_(model.weight)
    return model


def plan(steps: int = 60, noise: float = 0.1, rate: float = 0.5, patients: int = 40) -> StagePlan:
    return StagePlan(
        name="generator", sample_rate=rate, noise_multiplier=noise, clip_norm=1.0, steps=steps,
        denominator_patients=patients,
    )  # fmt: skip


def schedule(steps: int = 60, rate: float = 0.1, first: int = 0, total: int | None = None) -> Schedule:
    return Schedule(learning_rate=rate, first_step=first, steps=steps, total_steps=total or steps)


def test_the_rate_warms_up_in_every_stretch_and_falls_over_all_of_them() -> None:
    first, last = schedule(100, 1.0, 0, 200), schedule(100, 1.0, 100, 200)
    assert first.rate(0) == pytest.approx(0.05, rel=1e-3)
    assert first.rate(20) == pytest.approx(0.9755, abs=1e-3)
    assert last.rate(0) == pytest.approx(0.025, rel=1e-3)
    assert last.rate(50) == pytest.approx(0.1464, abs=1e-3)
    assert last.rate(99) < 1e-3


def test_a_constant_rate_stays_after_the_warm_up() -> None:
    steady = Schedule(learning_rate=0.3, first_step=900, steps=100, total_steps=1000, decay="constant")
    assert steady.rate(99) == 0.3


def test_a_stretch_of_a_single_step_learns_at_full_rate() -> None:
    assert schedule(1, 1.0, 0, 10).rate(0) == pytest.approx(1.0)


def test_ordinary_steps_find_the_truth_and_tell_the_mean_loss() -> None:
    model = line()
    loss = fit_ordinary(model, squared, draw, schedule=schedule(150), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model.weight.detach(), TRUTH, atol=0.05, rtol=0)
    assert 0 < loss < 5


def test_ordinary_steps_repeat_for_the_same_seed() -> None:
    weights = []
    for _ in range(2):
        model = line()
        fit_ordinary(model, squared, draw, schedule=schedule(5), generator=torch.Generator().manual_seed(1))
        weights.append(model.weight.detach())
    assert torch.equal(*weights)


def test_the_proximal_term_holds_the_weights_near_the_reference() -> None:
    free, held = line(), line()
    anchor = [torch.zeros(1, 2)]
    fit_ordinary(free, squared, draw, schedule=schedule(), generator=torch.Generator().manual_seed(0))
    fit_ordinary(
        held, squared, draw, schedule=schedule(), generator=torch.Generator().manual_seed(0), proximal=(50.0, anchor)
    )
    assert held.weight.norm() < 0.3 * free.weight.norm()


def test_private_steps_approach_the_truth_when_the_noise_is_small() -> None:
    model = line()
    engine = ReferenceEngine(model, squared)
    fit_private(model, engine, plan(), [draw] * 40, schedule=schedule(), stream=Stream.seeded(0, "fit"))
    torch.testing.assert_close(model.weight.detach(), TRUTH, atol=0.3, rtol=0)


def test_private_steps_without_a_single_patient_are_pure_noise() -> None:
    moved = []
    for _ in range(2):
        model = line()
        engine = ReferenceEngine(model, squared)
        fit_private(model, engine, plan(), [], schedule=schedule(5), stream=Stream.seeded(0, "fit"))
        moved.append(model.weight.detach())
    assert moved[0].any()
    assert torch.equal(*moved)


def test_private_steps_release_once_a_step_and_see_only_the_patients_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sizes, released = line(), [], []
    inner = ReferenceEngine(model, squared)
    truly = StagePlan.release

    class Watching:
        def clipped_sum(self, patients, clip_norm):  # type: ignore[no-untyped-def]
            sizes.append(len(patients))
            return inner.clipped_sum(patients, clip_norm)

    def release(self: StagePlan, clipped_sum: list[Tensor], stream: Stream) -> list[Tensor]:
        released.append(1)
        return truly(self, clipped_sum, stream)

    monkeypatch.setattr(StagePlan, "release", release)
    fit_private(model, Watching(), plan(), [draw] * 40, schedule=schedule(20), stream=Stream.seeded(0, "fit"))
    assert len(released) == 20
    assert len(set(sizes)) > 3
    assert 14 < sum(sizes) / 20 < 26


def test_private_fitting_returns_nothing() -> None:
    model = line()
    assert inspect.signature(fit_private).return_annotation is None
    engine = ReferenceEngine(model, squared)
    result = fit_private(model, engine, plan(), [draw], schedule=schedule(1), stream=Stream.seeded(0))  # type: ignore[func-returns-value]
    assert result is None
