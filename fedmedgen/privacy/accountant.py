"""Epsilon of Poisson-sampled Gaussian steps by privacy-loss distributions, and the noise that meets a target."""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.pld import privacy_loss_distribution
from dp_accounting.rdp import RdpAccountant
from riskcal.analysis.conversions import get_beta_from_adp, get_beta_from_gdp, get_beta_from_pld
from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtr

from fedmedgen.errors import PrivacyError
from fedmedgen.schema import require

Parts = tuple[tuple[float, float, int], ...]  # (sample rate, noise multiplier, steps)
Unscaled = tuple[tuple[float, int], ...]  # (sample rate, steps)

FINEST_NEEDED = 0.1  # of a step's typical privacy loss, rate / noise: finer grids change epsilon by under 0.2 %
COARSEST = 1e-3
MOST_CELLS = 1e5  # over the range of the total loss: hopeless requests are answered fast, by a larger bound
MOST_CELLS_OF_A_STEP = 3e5
MOST_STEPS = 1_000_000
HOPELESS = 0.1  # an interval this wide means an epsilon in the thousands: called infinite
ROUND_OFF = 2.0**-52  # of delta, for each step: the Fourier transforms' own error stays below half of it
ROUGH = 5.0  # times coarser, for the search
HIGHEST_NOISE = 1e5
NEARLY_ALL = 0.995
ANY_RATE = "epsilon alone would allow almost any rate"


def epsilon(parts: Parts, delta: float) -> float:
    """Epsilon at `delta` of all parts composed, neighbours differing by one patient added or removed.

    **Guarantee** Pessimistic: losses are rounded so that the result is an upper bound on the true epsilon.
    **Source** Doroshenko et al. 2022 (connect the dots), dp-accounting.
    """
    require(0 < delta < 1, "delta", delta, "between 0 and 1")
    return _epsilon(_merged(parts), delta, 1.0)


def epsilon_rdp(parts: Parts, delta: float) -> float:
    """Epsilon by Renyi accounting: a looser bound by other mathematics, for cross-checks.

    **Source** Mironov et al. 2019, dp-accounting.
    """
    accountant = RdpAccountant()
    for rate, noise, steps in _merged(parts):
        if steps:
            accountant.compose(SelfComposedDpEvent(PoissonSampledDpEvent(rate, GaussianDpEvent(noise)), steps))
    return float(accountant.get_epsilon(delta))


def calibrate(parts: Unscaled, *, epsilon: float, delta: float, fixed: Parts = ()) -> float:
    """The smallest noise multiplier, to 0.1 %, that serves all parts, beside stages of fixed noise, within the target.

    **Raises** `PrivacyError` if no noise multiplier up to 100,000 does.
    **Guarantee** The accountant's epsilon of everything at the result is never above the target.
    """
    require(epsilon > 0 and math.isfinite(epsilon), "epsilon", epsilon, "a finite number above 0")
    require(0 < delta < 1, "delta", delta, "between 0 and 1")
    alone = _epsilon(_merged(fixed), delta, 1.0)
    if alone > epsilon:
        raise PrivacyError(
            f"the stages of fixed noise alone cost epsilon {alone:.4g} of {epsilon:g}: nothing is left for the rest; "
            "raise their noise or epsilon"
        )

    def at(noise: float, grid: float) -> float:
        return _epsilon(_merged(fixed + tuple((rate, noise, steps) for rate, steps in parts)), delta, grid)

    return calibrated(at, epsilon)


def scale_needed(parts: Parts, *, epsilon: float, delta: float) -> float:
    """The smallest common factor, to 0.1 %, on all noise multipliers that brings the parts within the target."""
    least = min(noise for _, noise, _ in parts)

    def at(noise: float, grid: float) -> float:
        scaled = tuple((rate, noise * (own / least), steps) for rate, own, steps in parts)
        return _epsilon(_merged(scaled), delta, grid)

    return calibrated(at, epsilon) / least


def calibrated(epsilon_at: Callable[[float, float], float], target: float) -> float:
    """The smallest noise multiplier whose `epsilon_at(noise, grid)` is at most `target` on the fine grid (1)."""
    low, high = 0.25, 0.5
    while epsilon_at(high, ROUGH) > target:
        low, high = high, high * 2
        if high > HIGHEST_NOISE:
            raise PrivacyError(f"no noise reaches epsilon {target:g}: raise epsilon or delta, or take fewer steps")
    low = _bisect(lambda noise: epsilon_at(noise, ROUGH) <= target, low, high, 1.01) / 1.06
    if epsilon_at(low, 1.0) <= target:
        low = 0.05
    return _bisect(lambda noise: epsilon_at(noise, 1.0) <= target, low, high, 1.001)


def _bisect(good: Callable[[float], bool], low: float, high: float, ratio: float) -> float:
    while high / low > ratio:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if good(middle) else (middle, high)
    return high


def true_positive_rate(parts: Parts, *, false_positive_rate: float = 0.01) -> float:
    """The share of patients that the best possible attacker recognises, at that share of false alarms."""
    merged = _merged(parts)
    if _interval(merged, 1.0) > HOPELESS:
        return 1.0
    return 1.0 - float(get_beta_from_pld(_composed(merged, 1.0), alpha=false_positive_rate))


def risk_words(epsilon: float, delta: float) -> str:
    """Epsilon in words: what an attacker who accepts 1 % false alarms can achieve against one patient."""
    if epsilon <= 0:
        return "nothing was released, so an attacker learns nothing"
    usual = 1.0 - float(get_beta_from_gdp(_gaussian_mu(epsilon, delta), alpha=0.01))
    worst = worst_true_positive_rate(epsilon, delta)
    bound = f"no mechanism of this epsilon allows more than {worst:.1%}" if worst < NEARLY_ALL else ANY_RATE
    return (
        f"an attacker who accepts 1 % false alarms recognises that a patient took part in {usual:.1%} of cases "
        f"(Gaussian noise of this epsilon; {bound})"
    )


def worst_true_positive_rate(epsilon: float, delta: float, *, false_positive_rate: float = 0.01) -> float:
    """The most that (epsilon, delta) alone allows the best attacker, whatever the mechanism and its order."""
    return 1.0 - float(get_beta_from_adp(epsilon, delta, alpha=false_positive_rate))


@lru_cache(maxsize=512)
def _epsilon(parts: Parts, delta: float, grid: float) -> float:
    if not any(steps for _, _, steps in parts):
        return 0.0
    if _interval(parts, grid) > HOPELESS:
        return math.inf
    resolved = delta - ROUND_OFF * sum(steps for _, _, steps in parts)
    if resolved <= 0:
        return math.inf
    return max(0.0, float(_composed(parts, grid).get_epsilon_for_delta(resolved)))


def _interval(parts: Parts, grid: float) -> float:
    finest = min([COARSEST, *(FINEST_NEEDED * rate / noise for rate, noise, _ in parts)])
    variance = sum(steps * (rate / noise) ** 2 for rate, noise, steps in parts)
    widest = max((_largest_loss(rate, noise) for rate, noise, _ in parts), default=0.0) / MOST_CELLS_OF_A_STEP
    return max(widest, grid * max(finest, (variance + 10 * math.sqrt(variance)) / MOST_CELLS))


def _largest_loss(rate: float, noise: float) -> float:
    """Of one step, where the noise is 10 standard deviations away."""
    log_ratio = 10 / noise + 1 / (2 * noise**2)
    return log_ratio + math.log(rate) if log_ratio > 700 else math.log1p(rate * math.expm1(log_ratio))


def _composed(parts: Parts, grid: float) -> Any:
    interval = _interval(parts, grid)
    total = privacy_loss_distribution.identity(interval)
    for rate, noise, steps in parts:
        if steps:
            total = total.compose(_one_step(rate, noise, interval).self_compose(steps))
    return total


@lru_cache(maxsize=32)
def _one_step(rate: float, noise: float, interval: float) -> Any:
    return privacy_loss_distribution.from_gaussian_mechanism(
        noise, sampling_prob=rate, value_discretization_interval=interval, pessimistic_estimate=True
    )


def _merged(parts: Parts) -> Parts:
    steps: dict[tuple[float, float], int] = {}
    for rate, noise, count in parts:
        require(0 < rate <= 1, "sample rate", rate, "above 0 and at most 1")
        require(noise > 0 and math.isfinite(noise), "noise multiplier", noise, "a finite number above 0")
        require(0 <= count <= MOST_STEPS, "steps", count, f"from 0 to {MOST_STEPS}")
        steps[rate, noise] = steps.get((rate, noise), 0) + count
    return tuple((rate, noise, count) for (rate, noise), count in sorted(steps.items()))


def _gaussian_mu(epsilon: float, delta: float) -> float:
    """The mu of the Gaussian mechanism that is exactly (epsilon, delta)-private (Balle and Wang 2018)."""

    def excess(mu: float) -> float:
        return float(ndtr(-epsilon / mu + mu / 2) - math.exp(epsilon + log_ndtr(-epsilon / mu - mu / 2)) - delta)

    return float(brentq(excess, 1e-6, 10 + 2 * epsilon))
