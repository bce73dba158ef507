"""A lower bound on epsilon from one run with many canaries, each in or out by a fair coin."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from fedmedgen.errors import SettingsError

SHARES = (0.125, 0.25, 0.5, 0.8)  # of the canaries are guessed: all are tried, and paid for by the confidence
FEWEST = 8  # canaries that a bound is taken from
LARGEST = 50.0  # epsilon beyond which nobody asks


@dataclass(frozen=True)
class Bound:
    """What one run proves: with the confidence asked for, epsilon is at least `epsilon`.

    `correct` of `guesses` coins were guessed right; `ceiling` is the bound had every guess been right.
    """

    epsilon: float
    guesses: int
    correct: int
    ceiling: float


def bound(scores: NDArray[np.float64], included: NDArray[np.bool_], *, confidence: float, delta: float) -> Bound:
    """The best bound over a few fixed numbers of guesses, each at a share of the error, so that the choice costs.

    Of the highest scores half as many as there are guesses are called in, of the lowest as many out. `scores` may
    depend on all that was released and on which canaries there were, never on `included`.

    **Shapes** scores and included ``[M]``
    **Raises** `SettingsError` for fewer than 8 canaries or a score that isn't finite.
    **Source** Steinke, Nasr and Jagielski 2023, theorem 5.2.
    """
    if len(scores) != len(included) or len(scores) < FEWEST:
        raise SettingsError(
            f"an audit needs at least {FEWEST} canaries, a score each; got {len(included)} and {len(scores)}"
        )
    if not np.isfinite(scores).all():
        raise SettingsError("a canary's score is not finite: the run it was planted in went wrong")
    order = np.argsort(scores, kind="stable")
    error = (1 - confidence) / len(SHARES)
    found = []
    for share in SHARES:
        half = max(1, round(share * len(scores) / 2))
        correct = int(included[order[-half:]].sum()) + int((~included[order[:half]]).sum())
        least = lower_bound(len(scores), 2 * half, correct, error=error, delta=delta)
        found.append((least, 2 * half, correct))
    least, guesses, correct = max(found)
    return Bound(least, guesses, correct, ceiling(len(scores), confidence=confidence, delta=delta))


def ceiling(count: int, *, confidence: float, delta: float) -> float:
    """The most that `bound` can prove with so many canaries: every guess right."""
    error = (1 - confidence) / len(SHARES)
    halves = [max(1, round(share * count / 2)) for share in SHARES]
    return max(lower_bound(count, 2 * half, 2 * half, error=error, delta=delta) for half in halves)


def lower_bound(count: int, guesses: int, correct: int, *, error: float, delta: float) -> float:
    """The largest epsilon that so many right guesses refute at that error: 0 where they refute none."""
    low, high = 0.0, LARGEST
    if p_value(count, guesses, correct, epsilon=low, delta=delta) > error:
        return 0.0
    for _ in range(60):
        middle = (low + high) / 2
        if p_value(count, guesses, correct, epsilon=middle, delta=delta) <= error:
            low = middle
        else:
            high = middle
    return low


def p_value(count: int, guesses: int, correct: int, *, epsilon: float, delta: float) -> float:
    """The chance, at most, of so many right guesses in a mechanism that is (epsilon, delta)-private.

    **Source** Steinke, Nasr and Jagielski 2023, theorem 5.2 with the corollary that makes it one number.
    """
    chance = 1 / (1 + math.exp(-epsilon))
    tail = float(binom.sf(correct - 1, guesses, chance))
    if delta == 0 or correct == 0:
        return min(1.0, tail)
    below = binom.pmf(np.arange(correct - 1, -1, -1), guesses, chance).cumsum()
    worst = float((below / np.arange(1, correct + 1)).max())
    return min(1.0, tail + 2 * count * delta * worst)
