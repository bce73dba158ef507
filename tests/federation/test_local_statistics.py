"""A site's statistics: the clipped sum over patients, noise of the stated size, the public denominator."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from fedmedgen.composition import compose
from fedmedgen.data import phantoms
from fedmedgen.data.cases import Case, CaseSet
from fedmedgen.federation import local_statistics, plan
from fedmedgen.federation.local_round import Arrays, LocalRound
from fedmedgen.models import basis
from fedmedgen.privacy.mechanism import StagePlan
from fedmedgen.privacy.randomness import Stream
from fedmedgen.privacy.statistics import patient_vector
from fedmedgen.settings import Settings
from fedmedgen.training.rows import encode

DECLARED, NOISE, DIMENSION = 40, 0.7, 6


@pytest.fixture(scope="module")
def settings() -> Settings:
    return compose(["study=demo", "smoke=true", "data.size=[16,16]", "statistics.share=0.5"])


@pytest.fixture(scope="module")
def cases(settings: Settings) -> CaseSet:
    """Twelve patients of two images each."""
    data = settings.data
    drawn = phantoms.draw("chest", 24, size=(16, 16), seed=1, classes=data.classes, mask_classes=data.mask_classes)
    named = [replace(case, patient=f"p{number // 2}", site="north") for number, case in enumerate(drawn)]
    return CaseSet(tuple(named), data.classes, data.mask_classes)


@pytest.fixture(scope="module")
def arrays(settings: Settings) -> Arrays:
    data = settings.data
    public = phantoms.prior(40, data=data, classes=data.classes, seed=3).cases
    found = basis.pca(basis.standardised(encode(public, data.mask_classes))[0], DIMENSION).to_arrays()
    return {**found, "basis.scale": np.float32(0.75) * found["basis.scale"]}  # some vectors are longer than the clip


def asked(settings: Settings, noise: float | None = NOISE) -> LocalRound:
    mechanism = None
    if noise is not None:
        mechanism = StagePlan(
            name=plan.STATISTICS, sample_rate=1.0, noise_multiplier=noise, clip_norm=1.0, steps=1,
            denominator_patients=DECLARED,
        )  # fmt: skip
    return LocalRound(settings, plan.stage_named(settings, plan.STATISTICS), 1, mechanism)


def sent(settings: Settings, arrays: Arrays, cases: CaseSet, noise: float | None = NOISE, seed: int = 0) -> Tensor:
    stream = Stream.seeded(seed)
    reply = local_statistics.run(asked(settings, noise), arrays, cases, stream=stream).arrays
    assert {name: value.shape for name, value in reply.items()} == local_statistics.reply_shapes(settings, DIMENSION)
    return torch.from_numpy(reply[local_statistics.VECTOR]).double()


def vectors(settings: Settings, arrays: Arrays, cases: CaseSet) -> list[Tensor]:
    """Each patient's vector, as the definition has it."""
    known, layout = basis.Basis.from_arrays(arrays), local_statistics.layout_of(settings, DIMENSION)
    return [
        patient_vector(
            known.coefficients(basis.standardised(encode(group, settings.data.mask_classes))[0]),
            torch.tensor([case.label for case in group]),
            layout,
        )
        for group in cases.by_patient().values()
    ]


def test_what_is_sent_is_the_clipped_sum_plus_the_noise_that_the_stream_gives(
    settings: Settings, arrays: Arrays, cases: CaseSet
) -> None:
    each = vectors(settings, arrays, cases)
    assert max(float(vector.norm()) for vector in each) > 1 > min(float(vector.norm()) for vector in each)
    clipped = torch.stack([vector / max(1.0, float(vector.norm())) for vector in each]).sum(dim=0)
    noise = torch.from_numpy(Stream.seeded(0).normal_float64(len(clipped)))
    torch.testing.assert_close(sent(settings, arrays, cases), (clipped + NOISE * noise) / DECLARED, atol=1e-6, rtol=0)


def test_the_noise_has_the_stated_size(settings: Settings, arrays: Arrays, cases: CaseSet) -> None:
    difference = sent(settings, arrays, cases, seed=1) - sent(settings, arrays, cases, seed=2)
    assert float(difference.std()) * DECLARED == pytest.approx(NOISE * 2**0.5, rel=0.25)


def test_one_patient_with_many_images_moves_the_sum_by_the_clip_at_most(
    settings: Settings, arrays: Arrays, cases: CaseSet
) -> None:
    norms = [float(vector.norm()) for vector in vectors(settings, arrays, cases)]
    hers = cases.cases[2 * norms.index(max(norms)) :][:2]
    many = [replace(case, patient="p-new", name=f"{number}.png") for number in range(20) for case in hers]
    with_her = cases.with_cases([*cases, *many])
    moved = (sent(settings, arrays, with_her) - sent(settings, arrays, cases)) * DECLARED
    assert float(moved.norm()) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("bad", [np.full((1, 16, 16), np.nan), np.full((1, 16, 16), np.inf), np.zeros((1, 8, 8))])
def test_a_patient_whose_image_cannot_be_used_contributes_zero(
    settings: Settings, arrays: Arrays, cases: CaseSet, bad: np.ndarray
) -> None:
    hers = Case(bad.astype(np.float32), "bad.png", label=0, patient="p-bad", site="north")
    alone = cases.with_cases([*cases, hers])
    assert torch.equal(sent(settings, arrays, alone), sent(settings, arrays, cases))


def test_a_site_without_a_case_sends_noise_alone(settings: Settings, arrays: Arrays, cases: CaseSet) -> None:
    vector = sent(settings, arrays, cases.with_cases([]))
    noise = torch.from_numpy(Stream.seeded(0).normal_float64(len(vector)))
    torch.testing.assert_close(vector, NOISE * noise / DECLARED, atol=1e-6, rtol=0)


def test_without_privacy_the_mean_is_exact(settings: Settings, arrays: Arrays, cases: CaseSet) -> None:
    mean = torch.stack(vectors(settings, arrays, cases)).mean(dim=0)
    torch.testing.assert_close(sent(settings, arrays, cases, noise=None), mean, atol=1e-6, rtol=1e-5)


def test_the_kernel_mean_asks_with_frequencies(settings: Settings) -> None:
    kernel = replace(settings, statistics=replace(settings.statistics, kind="kernel-mean", features=8))
    assert local_statistics.request_shapes(kernel, 5)[local_statistics.FREQUENCIES] == (4, 5)
    assert local_statistics.reply_shapes(kernel, 5) == {local_statistics.VECTOR: (27,)}
    assert local_statistics.FREQUENCIES not in local_statistics.request_shapes(settings, 5)
