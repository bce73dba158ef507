"""Epsilon lies above every lower bound we know, below Renyi accounting, and within 1 % of closed forms and Opacus."""

import logging
import math
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from opacus.accountants import PRVAccountant
from scipy.optimize import brentq
from scipy.special import ndtr

from fedmedgen.errors import PrivacyError
from fedmedgen.privacy import accountant

DELTA = 1e-5
PUBLISHED = 4096 / 60000  # DP diffusion models on MNIST: batch over images
SUBSAMPLED = [
    ((3e-4, 0.4, 5000),),
    ((1e-3, 0.5, 1000),),
    ((1e-3, 0.6, 20_000),),
    ((0.01, 1.0, 20_000),),
    ((0.02, 0.6, 60),),
    ((0.05, 0.4, 10),),
    ((0.2, 1.444, 150),),
    ((0.5, 4.0, 1000),),
    ((0.9, 5.0, 100),),
    ((1.0, 30.0, 1000),),
]
STAGES = [  # statistics, generator, segmenter
    ((1.0, 20.0, 1), (0.2, 2.0, 120), (0.2, 3.0, 30)),
    ((1.0, 8.0, 1), (0.05, 1.0, 400), (0.3, 4.0, 30)),
    ((1.0, 50.0, 1), (0.02, 0.6, 60), (0.1, 0.9, 60)),
]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.getLogger("absl").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def gaussian_delta(epsilon: NDArray[np.float64] | float, mu: float) -> NDArray[np.float64]:
    """Balle and Wang 2018; `epsilon` may be negative."""
    return ndtr(-epsilon / mu + mu / 2) - np.exp(epsilon) * ndtr(-epsilon / mu - mu / 2)


def removed_delta(epsilon: NDArray[np.float64] | float, rate: float, noise: float) -> NDArray[np.float64]:
    """Hockey-stick of (1 - q) N(0, s) + q N(1, s) from N(0, s): one sampled step, the patient taken away."""
    inner = (np.exp(epsilon) - 1 + rate) / rate
    cut = noise**2 * np.log(np.where(inner > 0, inner, 1)) + 0.5
    found = rate * ndtr((1 - cut) / noise) - (np.exp(epsilon) - 1 + rate) * ndtr(-cut / noise)
    return np.where(inner > 0, found, 1 - np.exp(epsilon))


def added_delta(epsilon: float, rate: float, noise: float) -> float:
    """The same divergence the other way round: the patient put in."""
    inner = (math.exp(-epsilon) - 1 + rate) / rate
    if inner <= 0:
        return 0.0
    cut = noise**2 * math.log(inner) + 0.5
    absent, there = float(ndtr(cut / noise)), float(ndtr((cut - 1) / noise))
    return absent - math.exp(epsilon) * ((1 - rate) * absent + rate * there)


def prv(parts: accountant.Parts, size: float) -> tuple[float, float, float]:
    """Lower bound, estimate and upper bound by Opacus, its own error at most 0.2 % of `size`."""
    other = PRVAccountant()
    other.history = [(noise, rate, steps) for rate, noise, steps in parts]
    error, delta_error = 0.002 * size, DELTA / 1000
    found = other._get_dprv(eps_error=error, delta_error=delta_error).compute_epsilon(DELTA, delta_error, error)
    low, estimate, high = map(float, found)
    return low, estimate, high


def lower_bound(parts: accountant.Parts, delta: float) -> float:
    """dp-accounting's optimistic estimate: losses rounded so that the true epsilon is above."""
    interval = min([1e-3, *(0.1 * rate / noise for rate, noise, _ in parts)])
    total = privacy_loss_distribution.identity(interval, pessimistic_estimate=False)
    for rate, noise, steps in parts:
        step = privacy_loss_distribution.from_gaussian_mechanism(
            noise, sampling_prob=rate, value_discretization_interval=interval, pessimistic_estimate=False
        )
        total = total.compose(step.self_compose(steps))
    return float(total.get_epsilon_for_delta(delta))


@pytest.mark.parametrize("delta", [1e-3, 1e-6, 1e-9, 1e-12])
@pytest.mark.parametrize(("noise", "steps"), [(0.5, 1), (3.0, 7), (10.0, 1000), (200.0, 50)])
def test_without_sampling_epsilon_is_within_1_percent_of_the_closed_form(
    noise: float, steps: int, delta: float
) -> None:
    mu = math.sqrt(steps) / noise
    exact = brentq(lambda e: gaussian_delta(e, mu) - delta, 1e-9, 700) if gaussian_delta(0.0, mu) > delta else 0.0
    assert exact <= accountant.epsilon(((1.0, noise, steps),), delta) <= exact * 1.01


@pytest.mark.parametrize(("noise", "steps"), [(1000.0, 10_000), (5000.0, 250_000)])
def test_steps_far_smaller_than_the_coarsest_grid_still_cost_within_1_percent(noise: float, steps: int) -> None:
    exact = brentq(lambda e: gaussian_delta(e, math.sqrt(steps) / noise) - DELTA, 1e-9, 700)
    assert exact <= accountant.epsilon(((1.0, noise, steps),), DELTA) <= exact * 1.01


@pytest.mark.parametrize("parts", SUBSAMPLED + STAGES)
def test_epsilon_is_within_1_percent_of_opacus_and_above_its_lower_bound(parts: accountant.Parts) -> None:
    claimed = accountant.epsilon(parts, DELTA)
    low, estimate, _ = prv(parts, claimed)
    assert low <= claimed
    assert claimed == pytest.approx(estimate, rel=0.01)


@st.composite
def plans(draw: st.DrawFn) -> accountant.Parts:
    """One to three stages whose total is neither nothing nor everything."""
    stages = []
    for _ in range(draw(st.integers(1, 3))):
        rate = draw(st.sampled_from([0.002, 0.02, 0.05, 0.2, 0.5, 1.0]))
        steps = draw(st.integers(1, 300))
        mu = draw(st.floats(0.05, 1.5))
        stages.append((rate, max(0.5, rate * math.sqrt(steps) / mu), steps))
    return tuple(stages)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(parts=plans(), delta=st.sampled_from([1e-4, 1e-5, 1e-7]))
def test_epsilon_lies_between_the_optimistic_estimate_and_renyi_accounting(
    parts: accountant.Parts, delta: float
) -> None:
    claimed = accountant.epsilon(parts, delta)
    assert lower_bound(parts, delta) <= claimed <= accountant.epsilon_rdp(parts, delta)


@pytest.mark.parametrize("parts", STAGES)
def test_stages_of_different_noise_cost_more_than_each_and_less_than_their_sum(parts: accountant.Parts) -> None:
    alone = [accountant.epsilon((part,), DELTA) for part in parts]
    assert max(alone) < accountant.epsilon(parts, DELTA) < sum(alone)


@pytest.mark.parametrize(("target", "noise", "by_pld"), [(10.0, 2.52, 9.27), (1.0, 18.4, 0.91)])
def test_the_published_noise_is_the_smallest_of_its_digits_by_renyi_accounting(
    target: float, noise: float, by_pld: float
) -> None:
    last_digit = 0.01 if noise < 10 else 0.1
    assert accountant.epsilon_rdp(((PUBLISHED, noise, 4394),), DELTA) <= target
    assert accountant.epsilon_rdp(((PUBLISHED, noise - last_digit, 4394),), DELTA) > target
    assert round(accountant.epsilon(((PUBLISHED, noise, 4394),), DELTA), 2) == by_pld


@pytest.mark.parametrize(("rate", "noise"), [(0.05, 0.7), (0.3, 1.0), (0.9, 0.8)])
def test_epsilon_covers_the_patient_added_and_removed(rate: float, noise: float) -> None:
    claimed = accountant.epsilon(((rate, noise, 1),), DELTA)
    removed, added = float(removed_delta(claimed, rate, noise)), added_delta(claimed, rate, noise)
    assert added < 0.7 * removed  # an accountant of additions alone would claim too little
    assert max(removed, added) <= DELTA < float(removed_delta(claimed * 0.99, rate, noise))


@pytest.mark.parametrize(("rate", "noise"), [(0.05, 0.7), (0.3, 1.0), (0.9, 0.8)])
def test_the_best_attackers_rate_covers_the_patient_added_and_removed(rate: float, noise: float) -> None:
    def with_her(x: float) -> float:
        return float((1 - rate) * ndtr(x / noise) + rate * ndtr((x - 1) / noise))

    above = brentq(lambda x: float(ndtr(-x / noise)) - 0.01, -9, 9)
    below = brentq(lambda x: with_her(x) - 0.01, -9, 9)
    best = max(1 - with_her(above), float(ndtr(below / noise)))
    assert accountant.true_positive_rate(((rate, noise, 1),)) == pytest.approx(best, rel=1e-4)


def test_privacy_loss_distributions_are_no_filter_for_steps_chosen_after_results() -> None:
    """A server that picks the second of two runs by what the first showed; delta at epsilon 1, exact by quadrature."""
    first, second, other = (1.0, 6.0, 1), (1.0, 6.0, 1), (0.01, 0.799195, 1)
    seen, step = np.linspace(-12.0, 12.0, 200_001, retstep=True)
    density = np.exp(-(seen**2) / 2) / math.sqrt(2 * math.pi) * step
    left = 1.0 - (seen / 6.0 + 1 / 72)  # of epsilon, after the first run's loss
    gaussian, sampled = gaussian_delta(left, 1 / 6.0), removed_delta(left, *other[:2])
    fixed = [float(density @ choice) for choice in (gaussian, sampled)]
    chosen = float(density @ np.maximum(gaussian, sampled))
    assert fixed == pytest.approx([9.2e-7, 9.2e-7], rel=0.005)
    assert chosen == pytest.approx(1.66e-6, rel=0.005)
    for parts in ((first, second), (first, other)):
        assert accountant.epsilon(parts, 9.2e-7) == pytest.approx(1.0, abs=0.002)
    delta = 9.2e-7
    added = accountant.epsilon((first,), delta) + max(accountant.epsilon((run,), delta) for run in (second, other))
    left = added - (seen / 6.0 + 1 / 72)
    assert density @ np.maximum(gaussian_delta(left, 1 / 6.0), removed_delta(left, *other[:2])) <= 2 * delta


def test_noise_is_calibrated_beside_stages_of_fixed_noise() -> None:
    statistics, training = ((1.0, 12.0, 1),), ((0.2, 120), (0.2, 30))
    noise = accountant.calibrate(training, epsilon=3.0, delta=DELTA, fixed=statistics)
    parts = statistics + tuple((rate, noise, steps) for rate, steps in training)
    assert 2.99 < accountant.epsilon(parts, DELTA) <= 3.0
    assert noise > accountant.calibrate(training, epsilon=3.0, delta=DELTA)


def test_a_stage_of_fixed_noise_that_costs_all_is_refused_in_words() -> None:
    with pytest.raises(PrivacyError, match=r"fixed noise alone cost epsilon 4\.\d+ of 3: nothing is left"):
        accountant.calibrate(((0.2, 120),), epsilon=3.0, delta=DELTA, fixed=((1.0, 1.0, 1),))


def test_the_factor_needed_brings_all_stages_just_within_the_target() -> None:
    parts = ((1.0, 8.0, 1), (0.05, 0.5, 400), (0.3, 0.1, 30))
    factor = accountant.scale_needed(parts, epsilon=2.0, delta=DELTA)
    scaled = tuple((rate, noise * factor, steps) for rate, noise, steps in parts)
    assert 1.99 < accountant.epsilon(scaled, DELTA) <= 2.0
