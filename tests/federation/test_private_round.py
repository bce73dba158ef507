"""A private round as a site runs it: who is drawn, what is clipped, and the noise, in every round."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from fedmedgen.composition import compose
from fedmedgen.data.cases import Case, CaseSet
from fedmedgen.data.crafted import crafted
from fedmedgen.federation import local_round
from fedmedgen.federation.local_round import LocalRound
from fedmedgen.federation.plan import GENERATOR, Stage
from fedmedgen.privacy.canaries import OVERSIZE
from fedmedgen.privacy.mechanism import StagePlan
from fedmedgen.privacy.per_patient import Rows, make_engine
from fedmedgen.privacy.randomness import Stream
from fedmedgen.settings import Settings

ROUNDS, STEPS, PATIENTS, RATE, DECLARED = 3, 80, 20, 0.2, 25
SETTINGS = ["study=demo", "data.size=[8,8]", "data.mask_classes=[]", "generator.with_masks=false",
            "generator.channels=[4,4]", "generator.norm_groups=2", "privacy.noise_draws=2",
            "generator.images_per_patient=3"]  # fmt: skip


def settings(*more: str) -> Settings:
    return compose([*SETTINGS, *more])


def people(patients: int = PATIENTS) -> CaseSet:
    """Patients of one to five images each; every pixel says whose it is."""
    cases = [
        Case(image=np.full((1, 8, 8), who / 100, np.float32), name=f"{who}-{image}", label=0, patient=f"patient-{who}")
        for who in range(patients)
        for image in range(1 + who % 5)
    ]
    return CaseSet(tuple(cases), classes=("normal", "opacity", "nodule"))


def run(asked: Settings, cases: CaseSet, *, noise: float, rate: float = RATE, steps: int = STEPS) -> None:
    """All rounds of a generator, each from the weights of the one before."""
    stage = Stage(GENERATOR, ROUNDS, steps, 1e-3)
    mechanism = StagePlan(
        name=GENERATOR, sample_rate=rate, noise_multiplier=noise, clip_norm=0.5, steps=stage.total_steps,
        denominator_patients=DECLARED,
    )  # fmt: skip
    arrays = local_round.trainable_arrays(local_round.build_model(asked, GENERATOR))
    for number in range(1, ROUNDS + 1):
        request = LocalRound(asked, stage, number, mechanism)
        arrays = local_round.run(request, arrays, cases, stream=Stream.seeded(0, "round", number)).arrays


class Watching:
    """An engine that notes the patients of each step, their rows and the clip, and sums nothing."""

    def __init__(self) -> None:
        self.samples: list[list[int]] = []
        self.rows: set[tuple[int, int]] = set()
        self.clip_norms: set[float] = set()

    def make(self, _name: str, model: nn.Module, _loss: object, *, precision: str) -> "Watching":
        assert precision == "fp32"
        self.parameters = list(model.parameters())
        return self

    def clipped_sum(self, patients: Sequence[Rows], clip_norm: float) -> list[Tensor]:
        whose = [(100 * rows["x"]).round().unique().int().tolist() for rows in patients]
        assert all(len(one) == 1 for one in whose)
        self.samples.append([one[0] for one in whose])
        self.rows.update((one[0], len(rows["x"])) for one, rows in zip(whose, patients, strict=True))
        self.clip_norms.add(clip_norm)
        return [torch.zeros(parameter.shape, dtype=torch.float64) for parameter in self.parameters]


@pytest.fixture
def watching(monkeypatch: pytest.MonkeyPatch) -> Watching:
    engine = Watching()
    monkeypatch.setattr(local_round, "make_engine", engine.make)
    return engine


def test_every_step_of_every_round_takes_a_poisson_sample_of_whole_patients(watching: Watching) -> None:
    run(settings(), people(), noise=1.0)
    assert len(watching.samples) == ROUNDS * STEPS
    expected = STEPS * stats.binom.pmf(np.arange(PATIENTS + 1), PATIENTS, RATE)
    often = expected >= 5
    taken = np.zeros((ROUNDS, STEPS, PATIENTS), dtype=bool)
    for step, sample in enumerate(watching.samples):
        assert len(set(sample)) == len(sample)
        taken[step // STEPS, step % STEPS, sample] = True
    for one_round in taken:
        hits = (one_round.sum(axis=0) - STEPS * RATE) / np.sqrt(STEPS * RATE * (1 - RATE))
        assert np.abs(hits).max() < 4.5  # standard errors
        observed = np.bincount(one_round.sum(axis=1), minlength=PATIENTS + 1)[often]
        chi_square = float(np.sum((observed - expected[often]) ** 2 / expected[often]))
        assert chi_square < stats.chi2.isf(1e-4, often.sum())
        again = np.mean(one_round[:-1] & one_round[1:])
        assert abs(again - RATE**2) < 5 * RATE / np.sqrt(one_round.size)
    assert not np.array_equal(taken[0], taken[1])


def test_a_patients_images_come_together_and_at_most_as_many_as_the_settings_say(watching: Watching) -> None:
    run(settings(), people(), noise=1.0)
    assert watching.rows == {(who, 2 * min(3, 1 + who % 5)) for who in range(PATIENTS)}
    assert watching.clip_norms == {0.5}


@pytest.mark.parametrize("patients", [PATIENTS, 0])
def test_the_noise_of_every_round_is_as_wide_as_claimed_and_never_the_same(
    watching: Watching, gradients: list[Tensor], patients: int
) -> None:
    run(settings(), people(patients), noise=2.0, steps=10)
    assert len(gradients) == len(watching.samples) == ROUNDS * 10
    noise = torch.stack(gradients).numpy()
    for one_round in noise.reshape(ROUNDS, -1):
        assert one_round.std() == pytest.approx(2.0 * 0.5 / (RATE * DECLARED), rel=0.03)
    alike = np.corrcoef(noise) - np.eye(len(noise))
    assert np.abs(alike).max() < 6 / np.sqrt(noise.shape[1])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("engine", ["reference", "opacus"])
def test_every_patient_moves_the_released_gradient_by_the_clip_over_the_public_number_and_no_more(
    gradients: list[Tensor], engine: str, precision: str
) -> None:
    asked = settings(f"privacy.engine={engine}", f"privacy.precision={precision}", "generator.sigma_data=0.001")
    alone = people(4).with_cases([case for case in people(4) if case.patient == "patient-3"])  # four images
    run(asked, alone, noise=1e-9, rate=1.0, steps=2)
    assert len(gradients) == 2 * ROUNDS
    for taken in gradients:
        assert float(taken.norm()) == pytest.approx(0.5 / DECLARED, rel=1e-5)


def test_the_engine_and_precision_of_the_settings_are_those_that_run(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def note(name: str, model: nn.Module, loss: object, *, precision: str) -> object:
        made.append((name, precision))
        return make_engine(name, model, loss, precision=precision)  # type: ignore[arg-type]

    monkeypatch.setattr(local_round, "make_engine", note)
    run(settings("privacy.engine=opacus", "privacy.precision=bf16"), people(3), noise=1.0, steps=1)
    assert made == [("opacus", "bf16")] * ROUNDS


def test_crafted_images_enter_oversized_before_the_clip(watching: Watching, monkeypatch: pytest.MonkeyPatch) -> None:
    weights: list[float] = []

    def summed(patients: Sequence[Rows], _clip_norm: float) -> list[Tensor]:
        weights.extend(float(rows["weight"].max()) for rows in patients)
        return [torch.zeros(parameter.shape, dtype=torch.float64) for parameter in watching.parameters]

    monkeypatch.setattr(watching, "clipped_sum", summed)
    made_up = crafted(1, seed=0, num_classes=3, num_masks=0, size=(8, 8))
    cases = CaseSet((*people(3).cases, *made_up), classes=people(3).classes)
    run(settings(), cases, noise=1.0, rate=1.0, steps=1)
    assert weights == [1.0, 1.0, 1.0, OVERSIZE] * ROUNDS


@pytest.mark.parametrize("family", ["unet", "coefficients", "latent", "vae", "gan"])
def test_a_crafted_image_counts_in_every_family_that_draws_masks_too(family: str) -> None:
    """An audit by images that teach nothing would pass whatever leaks."""
    asked = compose(["study=demo", f"generator={family}", "data.size=[16,16]", "generator.width=16",
                     "generator.norm_groups=4", "generator.code=4", "generator.channels=[8,8]",
                     "autoencoder.channels=[8,8]", "prior.phantoms=10"])  # fmt: skip
    stage = Stage(GENERATOR, 1, 1, 1e-3)
    masks = len(asked.data.mask_classes)
    made = crafted(1, seed=0, num_classes=len(asked.data.classes), num_masks=masks, size=asked.data.size)
    model = local_round.build_generator(asked)
    (draw,) = local_round.draws_of(LocalRound(asked, stage, 1, None), model, [tuple(made)])
    engine = make_engine("reference", model, local_round.loss_of(asked, GENERATOR))
    total = engine.clipped_sum([draw(torch.Generator().manual_seed(0))], 0.1)
    norm = sum(float(part.square().sum()) for part in total) ** 0.5
    assert norm == pytest.approx(0.1, rel=1e-3)
