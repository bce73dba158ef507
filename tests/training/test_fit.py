"""Fitting, with and without privacy."""

import inspect
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from fedmedgen.privacy.mechanism import StagePlan
from fedmedgen.privacy.per_patient import ReferenceEngine, make_engine
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


class Watching:
    """An engine that notes who came to each step; each of them adds `worth` to every number of the sum."""

    def __init__(self, model: nn.Module, worth: float = 1.0) -> None:
        self.shapes = [value.shape for value in model.parameters()]
        self.worth = worth
        self.samples: list[list[int]] = []
        self.clip_norms: set[float] = set()

    def clipped_sum(self, patients: Sequence[Rows], clip_norm: float) -> list[Tensor]:
        self.samples.append([int(rows["who"]) for rows in patients])
        self.clip_norms.add(clip_norm)
        return [torch.full(shape, self.worth * len(patients), dtype=torch.float64) for shape in self.shapes]


def name(who: int, generator: torch.Generator) -> Rows:
    return {"who": torch.tensor([who])}


@pytest.fixture
def gradients() -> Iterator[list[list[Tensor]]]:
    """What Adam takes at each step, noted at its own door."""
    taken: list[list[Tensor]] = []

    def note(optimiser: torch.optim.Optimizer, *_: object) -> None:
        taken.append([value.grad.clone() for group in optimiser.param_groups for value in group["params"]])

    handle = register_optimizer_step_pre_hook(note)
    yield taken
    handle.remove()


def watch(stage: StagePlan, patients: int, side: int = 40, worth: float = 1.0) -> Watching:
    """Fit two square layers privately for all steps of a stage."""
    model = nn.Sequential(nn.Linear(side, side, bias=False), nn.Linear(side, side, bias=False))
    engine, everyone = Watching(model, worth), [partial(name, who) for who in range(patients)]
    fit_private(model, engine, stage, everyone, schedule=schedule(stage.steps), stream=Stream.seeded(0, "watched"))
    return engine


def test_every_private_step_takes_a_poisson_sample_of_its_own() -> None:
    steps, patients, rate = 1500, 30, 0.2
    engine = watch(plan(steps=steps, rate=rate, patients=patients), patients, side=2)
    taken = np.zeros((steps, patients), dtype=bool)
    for step, sample in enumerate(engine.samples):
        assert len(set(sample)) == len(sample)
        taken[step, sample] = True
    hits = (taken.sum(axis=0) - steps * rate) / np.sqrt(steps * rate * (1 - rate))
    assert np.abs(hits).max() < 4.5  # standard errors: every patient comes with the sample rate
    expected = steps * stats.binom.pmf(np.arange(patients + 1), patients, rate)
    often = expected >= 10
    observed = np.bincount(taken.sum(axis=1), minlength=patients + 1)[often]
    chi_square = float(np.sum((observed - expected[often]) ** 2 / expected[often]))
    assert chi_square < stats.chi2.isf(1e-4, often.sum())  # no batch of one size
    again = np.mean(taken[:-1] & taken[1:])
    assert abs(again - rate**2) < 5 * rate / np.sqrt(taken.size)  # who came says nothing of who comes next


def test_private_steps_divide_by_the_public_number_whoever_came(gradients: list[list[Tensor]]) -> None:
    engine = watch(plan(steps=40, noise=1e-9, rate=0.25, patients=50), 30)
    assert len({len(sample) for sample in engine.samples}) > 5
    for sample, taken in zip(engine.samples, gradients, strict=True):
        for part in taken:
            torch.testing.assert_close(part, torch.full_like(part, len(sample) / (0.25 * 50)), rtol=1e-6, atol=1e-8)


def test_a_step_without_a_patient_is_a_step_of_pure_noise(gradients: list[list[Tensor]]) -> None:
    engine = watch(plan(steps=60, noise=3.0, rate=0.05, patients=40), 10)
    empty = [step for step, sample in enumerate(engine.samples) if not sample]
    assert len(engine.samples) == len(gradients) == 60
    assert 20 < len(empty) < 60
    for step in empty:
        noise = torch.cat([part.flatten() for part in gradients[step]])
        assert float(noise.std()) == pytest.approx(3.0 * 1.0 / (0.05 * 40), rel=0.08)  # five standard errors


def test_the_noise_of_private_steps_is_as_wide_as_claimed_and_never_the_same(gradients: list[list[Tensor]]) -> None:
    engine = watch(plan(steps=40, noise=2.0, rate=0.25, patients=40), 30, worth=0.0)
    assert engine.clip_norms == {1.0}
    noise = torch.stack([part.flatten() for taken in gradients for part in taken]).double().numpy()
    expected = 2.0 * 1.0 / (0.25 * 40)
    assert noise.std() == pytest.approx(expected, rel=0.01)  # 128,000 numbers: five standard errors
    assert stats.kstest(noise.ravel() / expected, "norm").pvalue > 1e-3
    alike = np.corrcoef(noise) - np.eye(len(noise))
    assert np.abs(alike).max() < 0.15  # six standard errors, between any two layers of any two steps


@pytest.mark.parametrize("rows", [1, 9])
def test_a_patient_counts_once_and_clipped_however_many_rows_she_has(gradients: list[list[Tensor]], rows: int) -> None:
    def huge(generator: torch.Generator) -> Rows:
        return {"x": torch.full((rows, 2), 1e3), "y": torch.full((rows, 1), -1e3)}

    model = line()
    stage = plan(steps=3, noise=1e-9, rate=1.0, patients=4)
    engine = ReferenceEngine(model, squared)
    fit_private(model, engine, stage, [huge], schedule=schedule(3), stream=Stream.seeded(0, "huge"))
    for (taken,) in gradients:
        assert float(taken.norm()) == pytest.approx(stage.clip_norm / 4, rel=1e-5)


def test_private_steps_release_once_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    released = []
    truly = StagePlan.release

    def release(self: StagePlan, clipped_sum: list[Tensor], stream: Stream) -> list[Tensor]:
        released.append(1)
        return truly(self, clipped_sum, stream)

    monkeypatch.setattr(StagePlan, "release", release)
    watch(plan(steps=20), 40)
    assert len(released) == 20


@pytest.mark.parametrize("engine", ["reference", "opacus", "fused"])
def test_a_patient_whose_rows_break_the_engine_takes_no_other_along(
    engine: str, gradients: list[list[Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(generator: torch.Generator) -> Rows:
        return {"x": torch.ones(16, 3), "y": torch.ones(16, 1)}

    def still(generator: torch.Generator) -> Rows:
        return {"x": torch.tensor([[3.0, 4.0]]), "y": torch.tensor([[-50.0]])}  # a gradient in direction (0.6, 0.8)

    model, stage = line(), plan(rate=1.0, patients=2, steps=1, noise=1e-6)
    people = [still, broken, still]
    fit_private(
        model, make_engine(engine, model, squared), stage, people, schedule=schedule(1), stream=Stream.seeded(0)
    )
    assert torch.allclose(gradients[0][0], torch.tensor([[0.6, 0.8]]), atol=1e-4)


def test_private_fitting_returns_nothing() -> None:
    model = line()
    assert inspect.signature(fit_private).return_annotation is None
    engine = ReferenceEngine(model, squared)
    result = fit_private(model, engine, plan(), [draw], schedule=schedule(1), stream=Stream.seeded(0))  # type: ignore[func-returns-value]
    assert result is None
