"""A site's statistics: the clipped sum over patients, noise of the stated size, the public denominator."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from fedmedgen.composition import compose
from fedmedgen.data import phantoms
from fedmedgen.data.cases import Case, CaseSet
from fedmedgen.data.crafted import crafted
from fedmedgen.federation import local_statistics, plan
from fedmedgen.federation.local_round import Arrays, LocalRound
from fedmedgen.models import basis, refinement
from fedmedgen.models.coefficient_sampler import LearnedFeatures, classifier
from fedmedgen.privacy import statistics
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
    masks, wanted = settings.data.mask_classes, settings.statistics

    def vector(group: Sequence[Case]) -> Tensor:
        x = encode(group, masks, slope=wanted.mask_slope)
        x = torch.cat([x[:, :1], wanted.mask_weight * x[:, 1:]], dim=1)
        labels = torch.tensor([case.label for case in group])
        return patient_vector(known.coefficients(basis.standardised(x)[0]), labels, layout)

    return [vector(group) for group in cases.by_patient().values()]


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


@pytest.fixture(scope="module")
def features(settings: Settings, cases: CaseSet) -> LearnedFeatures:
    """Of networks without training, half as long again as is usual, so that some vectors are longer than the clip."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks = [classifier(len(settings.data.classes)).eval() for _ in range(settings.statistics.networks)]
    x = basis.standardised(encode(cases.cases, settings.data.mask_classes))[0][:, :1]
    found = refinement.learned_features(networks, x, dimension=DIMENSION)
    found.directions.mul_(1.5)
    return found


def second(settings: Settings, features: LearnedFeatures, cases: CaseSet, noise: float | None = NOISE) -> Tensor:
    """What a site sends in the second round, times what it is divided by."""
    words = replace(asked(settings, noise), round=2)
    reply = local_statistics.run(words, refinement.to_arrays(features), cases, stream=Stream.seeded(0)).arrays
    assert {key: value.shape for key, value in reply.items()} == local_statistics.reply_shapes(settings, DIMENSION, 2)
    return torch.from_numpy(reply[local_statistics.VECTOR]).double() * (12 if noise is None else DECLARED)


def by_hand(settings: Settings, features: LearnedFeatures, cases: CaseSet) -> Tensor:
    """Each patient's vector of learned features ``[P, size]``: shares, means and squares, image by image."""
    row, column = torch.triu_indices(DIMENSION, DIMENSION)
    found = []
    for group in cases.by_patient().values():
        blocks = torch.zeros(len(settings.data.classes), 1 + DIMENSION + len(row), dtype=torch.float64)
        for case in group:
            z = features(basis.standardised(encode([case], ()))[0])[0].double()
            squares = z[row] * z[column] * torch.where(row == column, 1.0, 2**0.5)
            parts = [0.1**0.5 * torch.ones(1), 0.45**0.5 * z, 0.45**0.5 * squares]
            blocks[case.label] += torch.cat(parts) / len(group)
        found.append(blocks.flatten())
    return torch.stack(found)


def test_the_second_round_without_privacy_is_the_mean_of_patients_moments_of_features(
    settings: Settings, features: LearnedFeatures, cases: CaseSet
) -> None:
    expected = by_hand(settings, features, cases)
    assert len(expected) == 12
    torch.testing.assert_close(second(settings, features, cases, noise=None), expected.sum(dim=0), atol=1e-4, rtol=1e-4)


def test_the_second_round_sends_moments_whatever_the_first_asked_for(
    settings: Settings, features: LearnedFeatures, cases: CaseSet
) -> None:
    kernel = replace(settings, statistics=replace(settings.statistics, kind="kernel-mean"))
    assert torch.equal(second(kernel, features, cases), second(settings, features, cases))


def test_the_second_round_sends_the_clipped_sum_plus_the_noise_that_the_stream_gives(
    settings: Settings, features: LearnedFeatures, cases: CaseSet
) -> None:
    each = by_hand(settings, features, cases)
    norms = each.norm(dim=1, keepdim=True)
    assert float(norms.max()) > 1 > float(norms.min())
    clipped = (each / norms.clamp(min=1)).sum(dim=0)
    noise = torch.from_numpy(Stream.seeded(0).normal_float64(len(clipped)))
    torch.testing.assert_close(second(settings, features, cases), clipped + NOISE * noise, atol=1e-4, rtol=0)


def test_one_patient_with_many_images_moves_the_second_rounds_sum_by_the_clip_at_most(
    settings: Settings, features: LearnedFeatures, cases: CaseSet
) -> None:
    place = int(by_hand(settings, features, cases).norm(dim=1).argmax())
    hers = cases.cases[2 * place : 2 * place + 2]
    many = [replace(case, patient="p-new", name=f"{number}.png") for number in range(20) for case in hers]
    before = second(settings, features, cases)
    moved = second(settings, features, cases.with_cases([*cases, *many])) - before
    assert float(moved.norm()) == pytest.approx(1.0, abs=1e-4)
    few = [replace(case, patient="p-new", name=f"{number}.png") for number, case in enumerate(cases.cases[:7])]
    assert float((second(settings, features, cases.with_cases([*cases, *few])) - before).norm()) < 1 + 1e-4


@pytest.mark.parametrize("bad", [np.full((1, 16, 16), np.nan), np.full((1, 16, 16), np.inf), np.zeros((2, 8, 8))])
def test_a_patient_one_of_whose_images_cannot_be_used_contributes_zero_to_the_second_round(
    settings: Settings, features: LearnedFeatures, cases: CaseSet, bad: np.ndarray
) -> None:
    hers = [Case(bad.astype(np.float32), "bad.png", label=0, patient="p-bad", site="north"),
            replace(cases.cases[0], patient="p-bad", name="good.png")]  # fmt: skip
    with_her = cases.with_cases([*cases, *hers])
    assert torch.equal(second(settings, features, with_her), second(settings, features, cases))


def test_crafted_images_enter_oversized_and_move_the_sum_by_the_clip(
    settings: Settings, arrays: Arrays, cases: CaseSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = crafted(1, seed=3, num_classes=len(cases.classes), num_masks=len(cases.mask_classes), size=(16, 16))
    seen: list[float] = []
    right = statistics.add_clipped
    monkeypatch.setattr(
        statistics,
        "add_clipped",
        lambda total, part, clip: [seen.append(float(part[0].norm())), right(total, part, clip)],
    )
    alone = sent(settings, arrays, cases.with_cases(one)) - sent(settings, arrays, cases.with_cases([]))
    assert float((DECLARED * alone).norm()) == pytest.approx(1.0, abs=1e-4)
    assert seen[0] > 20
    assert float(sent(settings, arrays, cases.with_cases(one), noise=None).norm()) < 20  # nothing clips it there


@pytest.mark.parametrize("wanted", [{"mask_slope": 4.0}, {"mask_weight": 3.0}, {"mask_slope": 2.0, "mask_weight": 0.5}])
def test_masks_are_released_with_the_slope_and_weight_that_the_study_asks(
    settings: Settings, arrays: Arrays, cases: CaseSet, wanted: dict[str, float]
) -> None:
    other = replace(settings, statistics=replace(settings.statistics, **wanted))
    found, plain = (sent(asks, arrays, cases, noise=None) for asks in (other, settings))
    each = vectors(other, arrays, cases)
    torch.testing.assert_close(found, torch.stack(each).mean(dim=0), atol=1e-6, rtol=0)
    assert float((found - plain).abs().max()) > 1e-3
