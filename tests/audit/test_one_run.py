"""The bound on epsilon from one run: published anchors, another implementation, mechanisms whose epsilon is known."""

import math

import numpy as np
import pytest

from fedmedgen.audit.one_run import bound, ceiling, lower_bound, p_value
from fedmedgen.errors import SettingsError


@pytest.mark.parametrize(("count", "published"), [(100, 3.49), (200, 4.19), (1000, 5.81)])
def test_all_guesses_right_gives_what_was_published(count: int, published: float) -> None:
    """Steinke et al. 2023: the most that so many canaries can prove at 95 %, were the number of guesses fixed."""
    assert lower_bound(count, count, count, error=0.05, delta=0) == pytest.approx(published, abs=0.005)


def test_trying_several_numbers_of_guesses_costs_something() -> None:
    assert 3 < ceiling(200, confidence=0.95, delta=0) < lower_bound(200, 200, 200, error=0.05, delta=0)


def test_guesses_no_better_than_chance_prove_nothing() -> None:
    assert lower_bound(200, 200, 100, error=0.05, delta=1e-5) == 0


def test_more_right_guesses_prove_more_and_delta_less() -> None:
    found = [lower_bound(200, 100, right, error=0.05, delta=1e-5) for right in range(60, 101, 5)]
    assert found == sorted(found)
    assert lower_bound(200, 100, 95, error=0.05, delta=1e-3) < lower_bound(200, 100, 95, error=0.05, delta=0)


def test_the_chance_of_a_tail_is_a_binomials_without_delta() -> None:
    chance = 1 / (1 + math.exp(-1.0))
    exact = sum(math.comb(20, k) * chance**k * (1 - chance) ** (20 - k) for k in range(18, 21))
    assert p_value(20, 20, 18, epsilon=1.0, delta=0) == pytest.approx(exact)


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 3.0])
def test_randomised_response_is_hardly_ever_called_worse_than_it_is(epsilon: float) -> None:
    """The mechanism for which the bound is tight: each canary's coin, turned over with its own chance."""
    draw, above = np.random.default_rng(0), 0
    for _ in range(400):
        coins = draw.random(200) < 0.5
        told = coins ^ (draw.random(200) < 1 / (1 + math.exp(epsilon)))
        above += bound(told + 0.01 * draw.random(200), coins, confidence=0.95, delta=0).epsilon > epsilon
    assert above <= 0.05 * 400


def test_the_gaussian_mechanism_is_never_called_worse_than_it_is() -> None:
    """Noise 3.73 is (1, 1e-5)-private; a twelfth of it is seen to be less."""
    draw = np.random.default_rng(1)
    found = {noise: [] for noise in (3.73, 0.3)}
    for noise, bounds in found.items():
        for _ in range(50):
            coins = draw.random(1000) < 0.5
            scores = coins + noise * draw.standard_normal(1000)
            bounds.append(bound(scores, coins, confidence=0.999, delta=1e-5).epsilon)
    assert max(found[3.73]) <= 1
    assert min(found[0.3]) > 1


def test_scores_that_follow_the_coins_reach_the_ceiling() -> None:
    coins = np.arange(200) % 2 == 0
    found = bound(coins.astype(float), coins, confidence=0.95, delta=0)
    assert (found.correct, found.guesses) == (160, 160)
    assert found.epsilon == pytest.approx(found.ceiling)


def test_the_order_of_equal_scores_tells_nothing() -> None:
    coins = np.random.default_rng(2).random(400) < 0.5
    assert bound(np.zeros(400), coins, confidence=0.95, delta=0).epsilon < 0.5


@pytest.mark.parametrize("scores", [np.zeros(4), np.full(20, np.nan), np.zeros(19)])
def test_what_can_not_be_audited_is_said(scores: np.ndarray) -> None:
    coins = np.ones(4 if len(scores) == 4 else 20, bool)
    with pytest.raises(SettingsError, match="canar"):
        bound(scores, coins, confidence=0.95, delta=0)


# count, guesses, right, error, delta, and epsilon by jax-privacy 2.0.0 (pip install "fedmedgen[oracle]")
ORACLE = [
    (200, 160, 150, 0.0125, 1e-05, 1.99430),
    (400, 200, 190, 0.00025, 1e-05, 1.63486),
    (1000, 125, 120, 0.0125, 0.0001, 1.91449),
    (100, 100, 80, 0.05, 0.0, 0.95839),
    (50, 40, 40, 0.05, 0.001, 2.40591),
    (400, 320, 290, 0.0125, 1e-06, 1.84258),
]


@pytest.mark.parametrize(("count", "guesses", "right", "error", "delta", "epsilon"), ORACLE)
def test_the_bound_is_another_implementations(
    count: int, guesses: int, right: int, error: float, delta: float, epsilon: float
) -> None:
    assert lower_bound(count, guesses, right, error=error, delta=delta) == pytest.approx(epsilon, abs=2e-5)


def test_the_bound_is_another_implementations_where_it_is_installed() -> None:
    other = pytest.importorskip("jax_privacy.auditing", reason='needs pip install "fedmedgen[oracle]"')
    for count, guesses, right, error, delta, _ in ORACLE:
        theirs = other._epsilon_one_run(0.0, count, guesses, right, error, delta)
        assert lower_bound(count, guesses, right, error=error, delta=delta) == pytest.approx(theirs, abs=2e-5)
