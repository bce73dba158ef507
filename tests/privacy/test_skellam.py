"""The accountant of the shared noise beside exact sums over Skellam's distribution in one and two dimensions."""

import math

import numpy as np
import pytest
from dp_accounting.rdp import compute_epsilon
from scipy import stats

from fedmedgen.errors import PrivacyError
from fedmedgen.privacy import accountant, skellam
from fedmedgen.privacy.skellam import COARSEST, INFLATION, WIDEST_ROOT

ORDERS = np.arange(2, 65, dtype=np.float64)


def logmass(variance: float, shift: int, reach: int) -> np.ndarray:
    """Of whole numbers from -reach to reach, around `shift`."""
    return np.asarray(stats.skellam.logpmf(np.arange(-reach, reach + 1) - shift, variance / 2, variance / 2))


def pair(variance: float, shift: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Log masses without and with a patient who moves the sum by `shift`, over all points that matter."""
    reach = int(14 * math.sqrt(variance) + 20)
    without, moved = np.zeros(1), np.zeros(1)
    for one in shift:
        without = np.add.outer(without, logmass(variance, 0, reach)).ravel()
        moved = np.add.outer(moved, logmass(variance, one, reach)).ravel()
    kept = (without > -200) & (moved > -200)
    return without[kept], moved[kept]


def exact_renyi(p: np.ndarray, q: np.ndarray, order: float) -> float:
    return float(np.logaddexp.reduce(order * p + (1 - order) * q) / (order - 1))


def exact_epsilon(p: np.ndarray, q: np.ndarray, delta: float) -> float:
    """The least epsilon at which the hockey-stick divergence, in both directions, is at most delta."""
    low, high = 0.0, 60.0
    for _ in range(60):
        middle = (low + high) / 2
        worst = max(float(np.sum(np.exp(a) * np.maximum(0, -np.expm1(middle + b - a)))) for a, b in ((p, q), (q, p)))
        low, high = (low, middle) if worst <= delta else (middle, high)
    return high


CASES = [(4.0, (1,)), (30.0, (3,)), (200.0, (14,)), (2000.0, (40,)), (8.0, (1, 1)), (30.0, (2, 3)), (60.0, (5, 0))]


@pytest.mark.parametrize(("variance", "shift"), CASES)
def test_the_bound_on_renyi_divergences_holds_and_is_close(variance: float, shift: tuple[int, ...]) -> None:
    p, q = pair(variance, shift)
    bound = skellam.renyi(ORDERS, variance, l1=float(sum(shift)), l2=float(np.linalg.norm(shift)))
    for order, most in zip(ORDERS[:20], bound, strict=False):
        exact = exact_renyi(p, q, order)
        assert exact <= most * (1 + 1e-9)
        assert exact >= 0.4 * most or variance < 100
    if variance >= 200:
        assert exact_renyi(p, q, 2.0) >= 0.98 * bound[0]


def test_the_bound_is_the_papers_by_hand() -> None:
    """Of order 2, l1 3 and squared l2 5; at variance 10 the first of two terms is the lesser, at 1 the second."""
    order = np.array([2.0])
    assert skellam.renyi(order, 10.0, l1=3.0, l2=math.sqrt(5)) == pytest.approx(0.5 + 33 / 400)
    assert skellam.renyi(order, 1.0, l1=3.0, l2=math.sqrt(5)) == pytest.approx(5 + 9 / 2)


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5])
@pytest.mark.parametrize(("variance", "shift"), CASES[:6])
def test_the_bound_on_a_sampled_step_holds_in_both_directions(
    variance: float, shift: tuple[int, ...], rate: float
) -> None:
    p, q = pair(variance, shift)
    mixed = np.logaddexp(math.log1p(-rate) + p, math.log(rate) + q)
    curve = skellam.renyi(ORDERS, variance, l1=float(sum(shift)), l2=float(np.linalg.norm(shift)))
    bound = skellam.sampled(rate, curve)
    for order, most in zip(ORDERS[:25], bound, strict=False):
        added, removed = exact_renyi(mixed, p, order), exact_renyi(p, mixed, order)
        assert removed <= added * (1 + 1e-9)  # what the mirror proves
        assert added <= most * (1 + 1e-9)


@pytest.mark.parametrize("delta", [1e-3, 1e-5])
@pytest.mark.parametrize("steps", [1, 2])
def test_epsilon_is_above_the_exact_one_and_close(steps: int, delta: float) -> None:
    """Two steps of one dimension are one of two; the shift is the whole sensitivity in each."""
    variance, shift = 144.0, 4
    p, q = pair(variance, (shift,) * steps)
    exact = exact_epsilon(p, q, delta)
    curve = steps * skellam.renyi(ORDERS, variance, l1=float(shift), l2=float(shift))
    bound = float(compute_epsilon(ORDERS, curve, delta)[0])
    assert exact <= bound <= 1.25 * exact


@pytest.mark.parametrize("rate", [0.05, 0.3])
def test_epsilon_of_a_sampled_step_is_above_the_exact_one(rate: float) -> None:
    variance, shift = 100.0, 10
    p, q = pair(variance, (shift,))
    mixed = np.logaddexp(math.log1p(-rate) + p, math.log(rate) + q)
    curve = skellam.sampled(rate, skellam.renyi(ORDERS, variance, l1=float(shift), l2=float(shift)))
    for delta in (1e-3, 1e-5):
        exact = exact_epsilon(mixed, p, delta)
        assert exact <= float(compute_epsilon(ORDERS, curve, delta)[0]) <= 4.0 * exact


def test_noise_costs_little_more_than_gaussian_noise_by_loss_distributions() -> None:
    for parts in (((1.0, 1.0, 1),), ((1.0, 5.0, 2),), ((0.05, 2.5, 120),), ((0.05, 0.9, 100),)):
        gaussian, whole = accountant.epsilon(parts, 1e-5), skellam.epsilon(parts, 1e-5)
        assert gaussian <= whole <= 1.2 * gaussian  # what Renyi accounting loses
        assert whole == pytest.approx(accountant.epsilon_rdp(parts, 1e-5), rel=0.01)


def test_every_grid_that_may_be_used_costs_at_most_what_is_reckoned() -> None:
    """The curve of the coarsest grid and the longest vector is above those of finer grids and shorter vectors."""
    orders, noise = np.array(skellam.ORDERS, np.float64), 0.7
    for cells in (COARSEST, 4 * COARSEST, 64 * COARSEST):
        for length in (1, 1000, (cells // WIDEST_ROOT) ** 2):
            l2 = math.sqrt(cells**2 + length / 4 + cells + math.sqrt(length) / 2)
            l1 = min(l2**2, l2 * math.sqrt(length))
            assert l2 <= INFLATION * cells
            exact = skellam.renyi(orders, (noise * cells) ** 2, l1=l1, l2=l2)
            assert (exact <= skellam._step(1.0, noise) * (1 + 1e-12)).all()


def test_calibration_meets_its_target_and_refuses_what_none_can_meet() -> None:
    for target in (1.0, 10.0):
        noise = skellam.calibrate(((1.0, 2), (0.05, 50)), epsilon=target, delta=1e-5)
        at = skellam.epsilon(((1.0, noise, 2), (0.05, noise, 50)), 1e-5)
        assert 0.98 * target <= at <= target
    with pytest.raises(PrivacyError, match="fixed noise alone"):
        skellam.calibrate(((1.0, 1),), epsilon=1.0, delta=1e-5, fixed=((1.0, 0.5, 1),))
    factor = skellam.scale_needed(((1.0, 0.5, 1),), epsilon=1.0, delta=1e-5)
    assert skellam.epsilon(((1.0, 0.5 * factor, 1),), 1e-5) <= 1.0
