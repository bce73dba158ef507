"""Rounding moves no patient beyond its bound and moves nobody on the average; the noise is Skellam's."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedmedgen.errors import PrivacyError
from fedmedgen.privacy.randomness import Stream
from fedmedgen.privacy.rounding import (
    LEAST_RATE,
    MOST_RATE,
    _log_mass,
    cells_for,
    largest_square,
    poisson,
    rounded,
    skellam_noise,
)
from fedmedgen.privacy.skellam import INFLATION

wild = st.floats(allow_nan=True, allow_infinity=True) | st.sampled_from([0.0, 1e-320, 1e300, -1e300, 0.5])


@settings(max_examples=60)
@given(st.lists(wild, min_size=1, max_size=40), st.floats(1e-6, 10.0), st.integers(0, 2**32))
def test_no_vector_of_any_numbers_moves_the_sum_by_more_than_the_bound(
    values: list[float], clip: float, seed: int
) -> None:
    vector, cells = np.array(values), cells_for(len(values))
    with np.errstate(over="ignore", invalid="ignore"):
        found = rounded(vector, clip, cells, Stream.seeded(seed))
    square = int(found @ found)
    assert square <= largest_square(len(values), cells) <= (INFLATION * cells) ** 2
    if not np.isfinite(vector).all():
        assert square == 0


@pytest.mark.parametrize("length", [1, 16, 4000, 1_000_000, 50_000_000])
def test_the_grid_is_as_fine_as_the_accountant_counts_on(length: int) -> None:
    cells = cells_for(length)
    assert cells >= max(1024, 16 * math.sqrt(length))
    assert math.sqrt(largest_square(length, cells)) <= INFLATION * cells


class Upwards(Stream):
    """Rounds everything away from the floor at first, then to it."""

    def __init__(self) -> None:
        super().__init__(bytes(32), seeded=True)
        self.asked = 0

    def uniform(self, count: int) -> np.ndarray:
        self.asked += 1
        return np.full(count, 0.0 if self.asked < 3 else 1.0)


def test_a_draw_that_is_too_long_is_drawn_again() -> None:
    stream, cells = Upwards(), cells_for(4000)
    found = rounded(np.full(4000, 1 / math.sqrt(4000)), 1.0, cells, stream)
    assert stream.asked == 3
    assert int(found @ found) <= largest_square(4000, cells) < int(np.sum((found + 1) ** 2))


def test_rounding_is_right_on_the_average() -> None:
    stream, cells = Stream.seeded(1), cells_for(50)
    vector = np.random.default_rng(0).normal(size=50) / 100  # below the clip
    mean = np.mean([rounded(vector, 1.0, cells, stream) for _ in range(4000)], axis=0)
    assert np.abs(mean - vector * cells).max() < 5 * 0.5 / math.sqrt(4000)


def test_a_long_vector_is_clipped_to_the_clip_norm() -> None:
    vector = np.random.default_rng(0).normal(size=2000) * 50
    cells = cells_for(2000)
    found = rounded(vector, 0.25, cells, Stream.seeded(1)) / cells * 0.25
    assert np.linalg.norm(found) == pytest.approx(0.25, rel=2e-3)
    assert np.allclose(found, 0.25 * vector / np.linalg.norm(vector), atol=0.25 / cells)


@pytest.mark.parametrize("rate", [LEAST_RATE, 54_321.5, 3e7])
def test_poisson_numbers_have_the_distribution(rate: float) -> None:
    drawn = poisson(rate, 60_000, Stream.seeded(3))
    edges = np.unique(stats.poisson.ppf(np.linspace(0.02, 0.98, 49), rate))
    expected = np.diff(np.r_[0, stats.poisson.cdf(edges, rate), 1]) * len(drawn)
    found = np.bincount(np.searchsorted(edges, drawn, side="left"), minlength=len(edges) + 1)
    assert stats.chisquare(found, expected).pvalue > 1e-4


def test_at_the_largest_rate_poisson_numbers_are_normal_ones() -> None:
    """There the two differ by less than scipy's own error."""
    drawn = (poisson(MOST_RATE, 60_000, Stream.seeded(3)) - MOST_RATE) / math.sqrt(MOST_RATE)
    assert stats.kstest(drawn, "norm").pvalue > 1e-4


def test_the_noise_is_the_difference_of_two_and_parts_of_it_add_up() -> None:
    parts = [skellam_noise(4000.0, 60_000, Stream.seeded(n)) for n in range(3)]
    whole = np.sum(parts, axis=0)
    edges = np.unique(stats.skellam.ppf(np.linspace(0.02, 0.98, 49), 6000.0, 6000.0))
    expected = np.diff(np.r_[0, stats.skellam.cdf(edges, 6000.0, 6000.0), 1]) * len(whole)
    found = np.bincount(np.searchsorted(edges, whole, side="left"), minlength=len(edges) + 1)
    assert stats.chisquare(found, expected).pvalue > 1e-4
    assert len(np.unique(skellam_noise(1e6, 1000, Stream.system()))) > 500


def test_a_grid_too_coarse_for_the_sampler_is_refused() -> None:
    with pytest.raises(PrivacyError, match="plan a larger noise multiplier"):
        skellam_noise(100.0, 10, Stream.seeded(0))


@pytest.mark.parametrize("multiplier", [1.0, 20.0, 100.0, 1000.0, 1e4])
@pytest.mark.parametrize("length", [4000, 1_000_000, 20_000_000])
@pytest.mark.parametrize("share", [1.0, 0.5, 1 / 13])
def test_the_noise_reaches_every_whole_number_or_is_refused(length: int, multiplier: float, share: float) -> None:
    """Noise without low bits would let a patient's show through the exact sum, whatever epsilon says."""
    variance = share * (multiplier * cells_for(length)) ** 2
    if variance / 2 > MOST_RATE:
        with pytest.raises(PrivacyError, match="plan a smaller noise multiplier"):
            skellam_noise(variance, 10, Stream.seeded(0))
        return
    found = np.bincount(skellam_noise(variance, 64_000, Stream.seeded(4)) % 64, minlength=64)
    assert stats.chisquare(found).pvalue > 1e-5


def test_the_hat_covers_every_mass_from_the_least_rate_on() -> None:
    """Else rejection cuts the top off; checked where a draw lands, over the whole range of the uniform number."""
    for rate in (LEAST_RATE, 2.5 * LEAST_RATE, 1e5):
        b = 0.931 + 2.53 * math.sqrt(rate)
        a, inverse = -0.059 + 0.02483 * b, 1.1239 + 1.1328 / (b - 3.4)
        us = np.linspace(0.013, 0.5, 200_001)
        for sign in (-1, 1):
            k = np.floor((2 * a / us + b) * sign * (0.5 - us) + rate + 0.43)
            assert (_log_mass(k, rate) <= np.log(inverse / (a / us**2 + b)) + 1e-12).all()
