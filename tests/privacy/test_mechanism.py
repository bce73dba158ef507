"""Poisson coins, noise, denominator: what the accountant assumes is what the mechanism does."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from fedmedgen.errors import PrivacyError, SettingsError
from fedmedgen.privacy.mechanism import StagePlan
from fedmedgen.privacy.randomness import Stream

STAGE = StagePlan(
    name="generator", sample_rate=0.1, noise_multiplier=2.0, clip_norm=0.5, steps=10, denominator_patients=50
)


def test_every_patient_is_drawn_with_the_sample_rate() -> None:
    stream = Stream.seeded(0, "coins")
    hits = np.zeros(40)
    for _ in range(5000):
        hits[STAGE.draw(stream, 40)] += 1
    deviations = (hits - 500) / np.sqrt(5000 * 0.1 * 0.9)
    assert np.abs(deviations).max() < 4.5


def test_patients_are_drawn_independently_so_the_sample_size_is_binomial() -> None:
    stream = Stream.seeded(0, "sizes")
    sizes = np.array([len(STAGE.draw(stream, 40)) for _ in range(5000)])
    expected = 5000 * stats.binom.pmf(np.arange(41), 40, 0.1)
    common = expected >= 10
    observed = np.bincount(sizes, minlength=41)[common]
    chi_square = float(np.sum((observed - expected[common]) ** 2 / expected[common]))
    assert chi_square < stats.chi2.isf(1e-4, common.sum())
    assert 0 in sizes


def test_steps_are_drawn_independently_of_each_other() -> None:
    stream = Stream.seeded(0, "steps")
    taken = np.zeros((4000, 10), dtype=bool)
    for step in range(4000):
        taken[step, STAGE.draw(stream, 10)] = True
    both = np.mean(taken[:-1] & taken[1:])
    assert abs(both - 0.01) < 5 * np.sqrt(0.01 / taken.size)


def test_a_sample_names_each_patient_at_most_once_and_only_existing_ones() -> None:
    drawn = replace(STAGE, sample_rate=1.0).draw(Stream.system(), 7)
    assert drawn.tolist() == list(range(7))
    assert STAGE.draw(Stream.system(), 0).tolist() == []


def test_noise_is_gaussian_with_multiplier_times_clip_over_the_public_denominator() -> None:
    (noise,) = STAGE.release([torch.zeros(500, 400)], Stream.seeded(0, "noise"))
    expected = 2.0 * 0.5 / (0.1 * 50)
    assert abs(float(noise.std()) / expected - 1) < 0.01
    assert stats.kstest(noise.double().flatten().numpy() / expected, "norm").pvalue > 1e-3


def test_every_tensor_gets_noise_of_its_own() -> None:
    first, second = STAGE.release([torch.zeros(100), torch.zeros(100)], Stream.seeded(0))
    assert not torch.equal(first, second)
    assert bool((first != 0).all())
    assert bool((second != 0).all())


def test_the_denominator_is_public_whatever_the_sample_was() -> None:
    silent = replace(STAGE, noise_multiplier=1e-12)
    for num_patients_in_sample in (0, 1, 7):
        total = torch.full((3,), float(num_patients_in_sample))
        (mean,) = silent.release([total], Stream.system())
        assert torch.allclose(mean, total / (0.1 * 50), atol=1e-9)


def test_an_empty_sample_is_a_step_of_pure_noise() -> None:
    (noise,) = STAGE.release([torch.zeros(1000)], Stream.system())
    assert abs(float(noise.std()) / 0.2 - 1) < 0.15


def test_the_released_values_do_not_show_the_low_bits_of_the_sum() -> None:
    coarse = torch.arange(20_000, dtype=torch.float32) * 2.0**-3
    (released,) = STAGE.release([coarse], Stream.seeded(5))
    finer_than_the_sum = (released * 5 / 2.0**-3).double() % 1
    assert stats.kstest(finer_than_the_sum.numpy()[:2000], "uniform").pvalue > 1e-3


def test_the_released_tensors_keep_shape_order_and_float32() -> None:
    sums = [torch.zeros(2, 3), torch.zeros(()), torch.zeros(4, dtype=torch.float32)]
    released = STAGE.release(sums, Stream.system())
    assert [(part.shape, part.dtype) for part in released] == [(part.shape, torch.float32) for part in sums]


def test_a_sum_that_is_not_finite_is_not_released() -> None:
    with pytest.raises(PrivacyError, match="not finite"):
        STAGE.release([torch.tensor([1.0, float("nan")])], Stream.system())


def test_the_sum_itself_is_left_as_it_was() -> None:
    total = torch.ones(5)
    STAGE.release([total], Stream.system())
    assert total.tolist() == [1.0] * 5


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sample_rate", 0.0),
        ("sample_rate", 1.5),
        ("noise_multiplier", 0.0),
        ("noise_multiplier", float("inf")),
        ("noise_multiplier", float("nan")),
        ("clip_norm", -1.0),
        ("clip_norm", float("inf")),
        ("steps", 0),
        ("denominator_patients", 0),
        ("name", ""),
    ],
)
def test_a_stage_with_a_value_out_of_range_is_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(SettingsError, match=key):
        replace(STAGE, **{key: value})


def test_a_stage_survives_its_mapping() -> None:
    assert StagePlan.from_mapping(STAGE.to_mapping()) == STAGE


def test_a_stage_refuses_an_unknown_key() -> None:
    with pytest.raises(SettingsError, match="noise_multiplier"):
        StagePlan.from_mapping({**STAGE.to_mapping(), "noise_multiplyer": 1.0})


@pytest.mark.parametrize("noise_multiplier", [0.3, 1.0, 7.3, 1e4])
@pytest.mark.parametrize("value", [0.0, 1 / 3, -2.7e-9])
def test_a_release_is_on_a_grid_that_hides_the_low_bits_of_the_sum(noise_multiplier: float, value: float) -> None:
    stage = StagePlan(
        name="generator", sample_rate=1.0, noise_multiplier=noise_multiplier, clip_norm=0.7, steps=1,
        denominator_patients=1,
    )  # fmt: skip
    (released,) = stage.release([torch.full((4096,), value, dtype=torch.float64)], Stream.seeded(0))
    scale = noise_multiplier * 0.7
    grid = 2.0 ** (math.floor(math.log2(scale)) + 1 - 20)
    near = released[released.abs() < grid * 2**23].double() / grid
    assert len(near) > 3000
    assert torch.equal(near, near.round())
