"""A plan's epsilon is computed from its mechanism, never from a target."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from fedmedgen.errors import BudgetError, SettingsError
from fedmedgen.privacy import accountant
from fedmedgen.privacy.budget import Plan
from fedmedgen.privacy.ledger import Ledger, Limit
from fedmedgen.privacy.mechanism import StagePlan


def test_a_plans_epsilon_is_that_of_all_its_stages(plan: Plan) -> None:
    assert plan.epsilon == accountant.epsilon(((0.05, 1.0, 50),), 1e-5)
    assert plan.epsilon_after({"generator": 40, "segmenter": 10}) == plan.epsilon


def test_epsilon_rises_from_zero_with_every_round(plan: Plan) -> None:
    path = [plan.epsilon_after({"generator": steps}) for steps in range(0, 41, 10)]
    assert path[0] == 0
    assert path == sorted(set(path))
    assert path[-1] < plan.epsilon


def test_more_steps_than_planned_are_refused(plan: Plan) -> None:
    with pytest.raises(BudgetError, match="from 0 to 40 steps; got 41"):
        plan.epsilon_after({"generator": 41})


def test_a_stage_the_plan_lacks_is_refused(plan: Plan) -> None:
    with pytest.raises(BudgetError, match="no stage"):
        plan.epsilon_after({"statistics": 1})


def test_a_plan_survives_its_mapping_with_its_digest(plan: Plan) -> None:
    again = Plan.from_mapping(plan.to_mapping())
    assert again == plan
    assert again.digest == plan.digest


def test_any_change_of_a_plan_changes_its_digest(plan: Plan) -> None:
    first, second = plan.stages
    changes = {"steps": 41, "noise_multiplier": 1.01, "sample_rate": 0.06, "clip_norm": 2.0, "denominator_patients": 99}
    others = [Plan((replace(first, **{key: value}), second), plan.delta) for key, value in changes.items()]
    digests = {plan.digest, replace(plan, delta=1e-6).digest, *(other.digest for other in others)}
    assert len(digests) == 2 + len(changes)


def test_whole_numbers_and_fractions_make_the_same_plan(plan: Plan) -> None:
    first = replace(plan.stages[0], clip_norm=1)
    assert Plan((first, plan.stages[1]), plan.delta).digest == plan.digest


def test_a_plan_needs_stages_with_names_of_their_own(plan: Plan) -> None:
    with pytest.raises(SettingsError, match="each name once"):
        Plan((plan.stages[0], plan.stages[0]), 1e-5)
    with pytest.raises(SettingsError, match="one or more"):
        Plan((), 1e-5)


@pytest.fixture
def with_statistics() -> Plan:
    """Counts and moments first: one Gaussian on every patient, its own noise; then training."""
    shared = {"clip_norm": 1.0, "denominator_patients": 400}
    return Plan(
        (
            StagePlan(name="statistics", sample_rate=1.0, noise_multiplier=12.0, steps=1, **shared),
            StagePlan(name="generator", sample_rate=0.2, noise_multiplier=2.0, steps=120, **shared),
            StagePlan(name="segmenter", sample_rate=0.1, noise_multiplier=1.5, steps=30, **shared),
        ),
        1e-5,
    )


def test_a_stage_of_statistics_is_composed_with_its_own_noise_and_no_sampling(with_statistics: Plan) -> None:
    parts = ((1.0, 12.0, 1), (0.2, 2.0, 120), (0.1, 1.5, 30))
    assert with_statistics.parts == parts
    assert with_statistics.epsilon == accountant.epsilon(parts, 1e-5)
    alone = with_statistics.epsilon_after({"statistics": 1})
    assert alone == accountant.epsilon(((1.0, 12.0, 1),), 1e-5)
    assert 0 < alone < with_statistics.epsilon
    assert Plan.from_mapping(with_statistics.to_mapping()).digest == with_statistics.digest


def test_a_plan_fills_its_budget_to_the_last_step(with_statistics: Plan) -> None:
    with_statistics.require_within(with_statistics.epsilon)
    assert with_statistics.steps_within(with_statistics.epsilon) == sum(s.steps for s in with_statistics.stages)


def test_a_plan_beyond_its_budget_is_refused_with_what_would_fit(with_statistics: Plan) -> None:
    with pytest.raises(BudgetError) as refused:
        with_statistics.require_within(4.0)
    words = str(refused.value)
    assert f"cost epsilon {with_statistics.epsilon:.4g} at delta 1e-05; 4 is allowed" in words
    assert "statistics 1 at noise 12, generator 120 at noise 2, segmenter 30 at noise 1.5" in words
    fits = int(words.partition("the first ")[2].partition(" of 151 steps fit")[0])
    assert with_statistics.epsilon_after({"statistics": 1, "generator": fits - 1}) <= 4.0
    assert with_statistics.epsilon_after({"statistics": 1, "generator": fits}) > 4.0
    needed = dict(item.split() for item in words.partition("of at least ")[2].split(", "))
    stages = tuple(replace(stage, noise_multiplier=float(needed[stage.name])) for stage in with_statistics.stages)
    assert 3.97 < Plan(stages, 1e-5).epsilon <= 4.0


def test_of_a_plan_of_which_nothing_fits_no_step_is_offered(plan: Plan) -> None:
    with pytest.raises(BudgetError, match="the first 0 of 50 steps fit"):
        plan.require_within(0.05)


def test_noise_calibrated_for_fewer_steps_than_are_run_is_refused() -> None:
    noise = accountant.calibrate(((0.2, 60),), epsilon=3.0, delta=1e-5)
    shared = {"sample_rate": 0.2, "noise_multiplier": noise, "clip_norm": 1.0, "denominator_patients": 400}
    Plan((StagePlan(name="generator", steps=60, **shared),), 1e-5).require_within(3.0)
    with pytest.raises(BudgetError, match="the first 60 of 150 steps fit"):
        Plan((StagePlan(name="generator", steps=150, **shared),), 1e-5).require_within(3.0)


def test_runs_add_their_epsilons_and_deltas_in_the_ledger(plan: Plan, open_ledger: Callable[[], Ledger]) -> None:
    ledger, limit = open_ledger(), Limit(epsilon=10.0, delta=1e-4)
    for run in ("first", "second"):
        ledger.open_plan(run, plan.digest, plan.to_mapping(), epsilon=plan.epsilon, delta=plan.delta, limit=limit)
    spent = ledger.spent()
    assert (spent.epsilon, spent.delta) == (pytest.approx(2 * plan.epsilon), pytest.approx(2 * plan.delta))
    assert spent.epsilon > accountant.epsilon(plan.parts + plan.parts, spent.delta) * 1.1  # what PLD would have said
