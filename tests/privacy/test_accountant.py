"""Epsilon is an upper bound on the truth, close to it, and agrees with other accountants."""

import logging
import math
import warnings
from pathlib import Path

import pytest
from opacus.accountants import PRVAccountant
from scipy.optimize import brentq
from scipy.special import ndtr

from fedmedgen.errors import PrivacyError, SettingsError
from fedmedgen.privacy import accountant

DELTA = 1e-5
PARTS = [
    ((0.05, 1.0, 400),),
    ((0.01, 0.8, 1000),),
    ((0.05, 5.0, 500),),
    ((0.2, 6.0, 400), (0.05, 3.0, 100)),
    ((1.0, 30.0, 50),),
]


def gaussian_delta(epsilon: float, mu: float) -> float:
    return float(ndtr(-epsilon / mu + mu / 2) - math.exp(epsilon) * ndtr(-epsilon / mu - mu / 2))


def one_sampled_step_delta(epsilon: float, rate: float, noise: float) -> float:
    """Hockey-stick divergence of (1 - q) N(0, s) + q N(1, s) from N(0, s), in closed form."""
    inner = (math.exp(epsilon) - 1 + rate) / rate
    cut = noise**2 * math.log(inner) + 0.5
    return float(rate * ndtr((1 - cut) / noise) - (math.exp(epsilon) - 1 + rate) * ndtr(-cut / noise))


@pytest.mark.parametrize("steps", [1, 16, 400])
@pytest.mark.parametrize("noise", [1.0, 4.0, 20.0])
def test_without_sampling_epsilon_is_just_above_the_exact_gaussian_one(noise: float, steps: int) -> None:
    mu = math.sqrt(steps) / noise
    exact = brentq(lambda e: gaussian_delta(e, mu) - DELTA, 1e-9, 700)
    claimed = accountant.epsilon(((1.0, noise, steps),), DELTA)
    assert exact <= claimed <= exact * 1.005


@pytest.mark.parametrize(("rate", "noise"), [(0.05, 0.7), (0.3, 1.0), (0.5, 3.0)])
def test_for_one_sampled_step_epsilon_is_just_above_the_exact_one(rate: float, noise: float) -> None:
    exact = brentq(lambda e: one_sampled_step_delta(e, rate, noise) - DELTA, 1e-6, 100)
    claimed = accountant.epsilon(((rate, noise, 1),), DELTA)
    assert exact <= claimed <= exact * 1.01


@pytest.mark.parametrize("parts", PARTS)
def test_epsilon_is_never_above_renyi_accounting(parts: accountant.Parts) -> None:
    logging.getLogger("absl").setLevel(logging.ERROR)
    claimed = accountant.epsilon(parts, DELTA)
    assert 0.5 * accountant.epsilon_rdp(parts, DELTA) < claimed <= accountant.epsilon_rdp(parts, DELTA)


@pytest.mark.parametrize("parts", PARTS[:4])
def test_epsilon_agrees_with_the_privacy_random_variables_of_opacus(parts: accountant.Parts) -> None:
    other = PRVAccountant()
    other.history = [(noise, rate, steps) for rate, noise, steps in parts]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        upper = float(other.get_epsilon(DELTA, eps_error=0.01))
    claimed = accountant.epsilon(parts, DELTA)
    assert abs(claimed - upper) < 0.005 * upper + 0.011


def test_renyi_accounting_gives_the_published_noise_of_dp_diffusion() -> None:
    claimed = accountant.epsilon_rdp(((4096 / 60000, 2.52, 4394),), DELTA)
    assert claimed == pytest.approx(10.0, rel=0.01)


def test_the_true_epsilon_of_a_published_claim_of_1_is_3_8() -> None:
    batches = 5  # of 256 among 1,115 patients; calibrated for 20 epochs, run for 50 rounds of 5
    assert accountant.epsilon(((1 / batches, 7.19, 20 * batches),), 1e-4) < 1
    assert accountant.epsilon(((1 / batches, 7.19, 50 * 5 * batches),), 1e-4) == pytest.approx(3.8, abs=0.05)


def test_stages_of_one_noise_are_composed_as_one_run() -> None:
    whole = accountant.epsilon(((0.05, 1.0, 100),), DELTA)
    assert accountant.epsilon(((0.05, 1.0, 60), (0.05, 1.0, 40)), DELTA) == whole


def test_epsilon_rises_with_steps_and_rate_and_falls_with_noise_and_delta() -> None:
    middle = accountant.epsilon(((0.05, 1.0, 100),), DELTA)
    assert accountant.epsilon(((0.05, 1.0, 101),), DELTA) > middle
    assert accountant.epsilon(((0.06, 1.0, 100),), DELTA) > middle
    assert accountant.epsilon(((0.05, 1.1, 100),), DELTA) < middle
    assert accountant.epsilon(((0.05, 1.0, 100),), 1e-4) < middle


def test_no_steps_cost_nothing() -> None:
    assert accountant.epsilon(((0.05, 1.0, 0),), DELTA) == 0
    assert accountant.epsilon((), DELTA) == 0


@pytest.mark.parametrize("target", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("parts", [((0.05, 400), (0.05, 100)), ((0.2, 60), (0.02, 50))])
def test_calibrated_noise_meets_the_target_and_wastes_little(parts: accountant.Unscaled, target: float) -> None:
    noise = accountant.calibrate(parts, epsilon=target, delta=DELTA)
    assert accountant.epsilon(tuple((q, noise, n) for q, n in parts), DELTA) <= target
    assert accountant.epsilon(tuple((q, noise * 0.995, n) for q, n in parts), DELTA) > target


def test_noise_calibrated_for_fewer_steps_than_are_run_breaks_the_target() -> None:
    noise = accountant.calibrate(((0.05, 100),), epsilon=2.0, delta=DELTA)
    assert accountant.epsilon(((0.05, noise, 500),), DELTA) > 4.0


def test_a_target_out_of_reach_is_refused_in_words() -> None:
    with pytest.raises(PrivacyError, match="fewer steps"):
        accountant.calibrate(((1.0, 10**5),), epsilon=1e-5, delta=1e-9)


@pytest.mark.parametrize("parts", [((0.0, 1.0, 1),), ((1.1, 1.0, 1),), ((0.1, 0.0, 1),), ((0.1, 1.0, -1),)])
def test_impossible_parts_are_refused(parts: accountant.Parts) -> None:
    with pytest.raises(SettingsError):
        accountant.epsilon(parts, DELTA)


@pytest.mark.parametrize(("epsilon", "share"), [(1, "2.0%"), (3, "5.4%"), (5, "11.4%"), (8, "25.5%"), (10, "37.2%")])
def test_the_risk_in_words_gives_the_known_true_positive_rates(epsilon: float, share: str) -> None:
    assert f"in {share} of cases" in accountant.risk_words(epsilon, DELTA)


@pytest.mark.parametrize("epsilon", [1e-3, 0.1, 50.0, 500.0])
def test_the_risk_in_words_can_be_said_of_any_epsilon(epsilon: float) -> None:
    assert "1 % false alarms" in accountant.risk_words(epsilon, DELTA)


def test_the_best_attackers_rate_is_exact_for_a_gaussian_and_below_the_bound_by_epsilon() -> None:
    parts = ((1.0, 2.0, 1),)
    rate = accountant.true_positive_rate(parts)
    assert rate == pytest.approx(float(ndtr(-2.3263 + 0.5)), rel=0.01)
    assert rate <= math.exp(accountant.epsilon(parts, DELTA)) * 0.01 + DELTA


def test_the_table_of_risks_in_the_documents_is_what_the_code_says() -> None:
    lines = (Path(__file__).parents[2] / "docs" / "privacy.md").read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("| epsilon |"))
    rows = [[cell.strip() for cell in lines[number].strip("|").split("|")] for number in (start, start + 2)]
    for epsilon, share in zip(rows[0][1:], rows[1][1:], strict=True):
        assert f"in {share.replace(' ', '')} of cases" in accountant.risk_words(float(epsilon), DELTA)
