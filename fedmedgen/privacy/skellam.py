"""Epsilon of noisy sums of integers whose noise is Skellam's, by Renyi accounting: the accountant of the shared noise.

Its functions are those of `accountant`, and its noise multipliers mean the same: deviation of the noise over clip norm.
"""

import math
from functools import lru_cache

import numpy as np
from dp_accounting.rdp import compute_epsilon
from numpy.typing import NDArray
from scipy.special import gammaln, logsumexp

from fedmedgen.errors import PrivacyError
from fedmedgen.privacy.accountant import Parts, Unscaled, calibrated
from fedmedgen.schema import require

COARSEST = 1024  # cells to the clip norm, at least
WIDEST_ROOT = 16  # cells for each unit of the square root of the vector's length, at least
INFLATION = 1.001  # a rounded vector's norm over the clip norm, at most: sqrt(1 + 1/1024 + (1 + 1/32) / 1024)
ORDERS = (*range(2, 65), *range(68, 129, 4), *range(144, 257, 16), 320, 384, 448, 512)  # whole: the bound is for those
MOST_ORDERS_SAMPLED = 128  # of a sampled step, whose bound is a sum over all lower orders
Curve = NDArray[np.float64]  # by order


def epsilon(parts: Parts, delta: float) -> float:
    """Epsilon at `delta` of all parts composed, neighbours differing by one patient added or removed.

    **Guarantee** An upper bound, for every vector that `rounding` makes, on every grid that it may choose.
    **Source** Agarwal, Kairouz and Liu 2021 (Skellam); Mironov, Talwar and Zhang 2019 (sampling); Canonne, Kamath and
    Steinke 2020 (from Renyi to epsilon), dp-accounting.
    """
    require(0 < delta < 1, "delta", delta, "between 0 and 1")
    if not any(steps for _, _, steps in parts):
        return 0.0
    total = sum((steps * _step(rate, noise) for rate, noise, steps in parts if steps), np.zeros(len(ORDERS)))
    return max(0.0, float(compute_epsilon(ORDERS, total, delta)[0]))


def calibrate(parts: Unscaled, *, epsilon: float, delta: float, fixed: Parts = ()) -> float:
    """The smallest noise multiplier, to 0.1 %, that serves all parts, beside stages of fixed noise, within the target.

    **Raises** `PrivacyError` if no noise multiplier up to 100,000 does.
    """
    if (alone := _epsilon(fixed, delta)) > epsilon:
        raise PrivacyError(
            f"the stages of fixed noise alone cost epsilon {alone:.4g} of {epsilon:g}: raise one of them"
        )
    return calibrated(lambda noise, _: _epsilon((*fixed, *((r, noise, n) for r, n in parts)), delta), epsilon)


def scale_needed(parts: Parts, *, epsilon: float, delta: float) -> float:
    """The smallest common factor, to 0.1 %, on all noise multipliers that brings the parts within the target."""
    least = min(noise for _, noise, _ in parts)
    return (
        calibrated(lambda to, _: _epsilon(tuple((r, to * s / least, n) for r, s, n in parts), delta), epsilon) / least
    )


def renyi(orders: Curve, variance: float, *, l1: float, l2: float) -> Curve:
    """Renyi divergence of whole orders between Skellam noise of this variance and the same moved by whole numbers.

    **Source** Agarwal, Kairouz and Liu 2021, theorem 3.5 and its form for vectors.
    """
    near = ((2 * orders - 1) * l2**2 + 6 * l1) / (4 * variance**2)
    return orders * l2**2 / (2 * variance) + np.minimum(near, 3 * l1 / (2 * variance))


def sampled(rate: float, curve: Curve) -> Curve:
    """What Poisson sampling leaves of a curve over the orders 2, 3, …, for noise around a shift that can be mirrored.

    With P the noise, Q the same moved by s, and x -> s - x, which swaps them since Skellam's distribution is symmetric,
    adding a patient costs at least what removing her does; and that is a binomial sum over the curve's lower orders.

    **Source** Mironov, Talwar and Zhang 2019, theorem 5 (the mirror), section 3.3 (the sum); Zhu and Wang 2019.
    """
    j = np.arange(2.0, len(curve) + 2)
    order = j[:, None]
    with np.errstate(invalid="ignore"):
        binomial = gammaln(order + 1) - gammaln(j + 1) - gammaln(order - j + 1)
    terms = binomial + j * math.log(rate) + (order - j) * math.log1p(-rate) + (j - 1) * curve
    none_or_one = (order - 1) * math.log1p(-rate) + np.log1p((order - 1) * rate)
    all_terms = np.hstack([none_or_one, np.where(j <= order, terms, -math.inf)])
    kept = logsumexp(all_terms, axis=1) / (j - 1)
    return np.asarray(np.minimum(kept, curve))


def _epsilon(parts: Parts, delta: float) -> float:
    return epsilon(parts, delta)


@lru_cache(maxsize=512)
def _step(rate: float, noise: float) -> Curve:
    """One step's curve over `ORDERS`, at the coarsest grid that may be used: a finer one costs less."""
    require(0 < rate <= 1, "sample rate", rate, "above 0 and at most 1")
    require(noise > 0 and math.isfinite(noise), "noise multiplier", noise, "a finite number above 0")
    cells = float(COARSEST)
    l2 = INFLATION * cells
    l1 = min(l2**2, l2 * cells / WIDEST_ROOT)
    if rate == 1:
        return renyi(np.array(ORDERS, np.float64), (noise * cells) ** 2, l1=l1, l2=l2)
    every = np.arange(2, MOST_ORDERS_SAMPLED + 1, dtype=np.float64)
    curve = dict(zip(every, sampled(rate, renyi(every, (noise * cells) ** 2, l1=l1, l2=l2)), strict=True))
    return np.array([curve.get(float(order), math.inf) for order in ORDERS])
