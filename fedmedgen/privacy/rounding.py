"""From real vectors to whole numbers and back: one patient's clipped vector on a grid, and Skellam noise.

A grid has `cells` cells to the clip norm. Only its size and the length of the vector decide how much rounding may add
to a patient's norm, and the accountant counts that for the coarsest grid that is allowed.
"""

import math

import numpy as np
from numpy.typing import NDArray

from fedmedgen.errors import PrivacyError
from fedmedgen.privacy.randomness import Stream
from fedmedgen.privacy.skellam import COARSEST, WIDEST_ROOT

Whole = NDArray[np.int64]

MOST_TRIES = 1000
LEAST_RATE = 2000.0  # of the two Poisson variables whose difference is the noise: the hat covers every mass there
MOST_RATE = 2.0**44  # beyond, doubles first lose the low bits of what is drawn, and then a sum would show through
SERIES = (1 / 12, -1 / 360, 1 / 1260)


def cells_for(length: int) -> int:
    """The cells to the clip norm for vectors of a length: a power of two, fine enough for `INFLATION`."""
    return max(COARSEST, 1 << math.ceil(math.log2(WIDEST_ROOT * math.sqrt(length))))


def largest_square(length: int, cells: int) -> int:
    """The largest squared norm that a rounded vector may have.

    **Source** Kairouz, Liu and Steinke 2021, proposition 22, with beta = exp(-1/2).
    """
    return math.floor(cells**2 + length / 4 + cells + math.sqrt(length) / 2)


def rounded(vector: NDArray[np.float64], clip_norm: float, cells: int, stream: Stream) -> Whole:
    """A clipped vector, each number moved to one of its two neighbours on the grid, the nearer the likelier.

    **Guarantee** The squared norm, in exact whole numbers, is at most `largest_square`; the mean over draws is the
    clipped vector, but for draws that are too long, which are drawn again. A vector that isn't finite is zero.
    """
    norm = float(np.linalg.norm(vector))
    if not math.isfinite(norm) or norm == 0:
        return np.zeros(vector.size, np.int64)
    exact = vector * (cells / max(norm, clip_norm))
    below = np.floor(exact)
    for _ in range(MOST_TRIES):
        drawn: Whole = (below + (stream.uniform(vector.size) < exact - below)).astype(np.int64)
        if int(drawn @ drawn) <= largest_square(vector.size, cells):
            return drawn
    return np.zeros(vector.size, np.int64)  # never, but for a fault; and then nothing is given away


def skellam_noise(variance: float, count: int, stream: Stream) -> Whole:
    """`count` whole numbers of Skellam's distribution around zero: the difference of two Poisson numbers.

    **Raises** `PrivacyError` for a variance that the sampler can't draw exactly: see `check_variance`.
    """
    return poisson(variance / 2, count, stream) - poisson(variance / 2, count, stream)


def check_variance(variance: float) -> None:
    """**Raises** `PrivacyError` for a variance so small, or so large, that the sampler can't draw its whole numbers."""
    if not LEAST_RATE <= variance / 2 <= MOST_RATE:
        raise PrivacyError(
            f"the noise needs a variance of {2 * LEAST_RATE:.4g} to {2 * MOST_RATE:.4g} squared cells; got "
            f"{variance:.4g}: plan a {'larger' if variance / 2 < LEAST_RATE else 'smaller'} noise multiplier"
        )


def poisson(rate: float, count: int, stream: Stream) -> Whole:
    """`count` Poisson numbers by transformed rejection.

    The logarithm of the mass comes from its deviance, not from differences of large numbers, so that its error stays
    near 1e-12 where the rate is in the millions. Uniform numbers are of 52 bits, so that a mass is off by at most a
    part in 2^29 near the middle at the largest rate, and by less at smaller ones.

    **Source** Hörmann 1993 (PTRS); Loader 2000 (the mass).
    """
    check_variance(2 * rate)
    b = 0.931 + 2.53 * math.sqrt(rate)
    a, inverse = -0.059 + 0.02483 * b, 1.1239 + 1.1328 / (b - 3.4)
    found = np.empty(count, np.int64)
    left = np.arange(count)
    while left.size:
        u, v = stream.uniform(left.size) - 0.5, stream.uniform(left.size)
        us = 0.5 - np.abs(u)
        k = np.floor((2 * a / us + b) * u + rate + 0.43)
        good = k > rate / 2  # beyond 20 deviations nothing is ever accepted
        k[~good] = rate
        good &= np.log(v * inverse / (a / us**2 + b)) <= _log_mass(k, rate)
        found[left[good]] = k[good].astype(np.int64)
        left = left[~good]
    return found


def _log_mass(k: NDArray[np.float64], rate: float) -> NDArray[np.float64]:
    x = (k - rate) / rate
    deviance = rate * ((1 + x) * np.log1p(x) - x)
    stirling = SERIES[0] / k + SERIES[1] / k**3 + SERIES[2] / k**5
    mass: NDArray[np.float64] = -deviance - stirling - 0.5 * np.log(2 * math.pi * k)
    return mass
