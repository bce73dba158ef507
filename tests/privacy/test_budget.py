"""A plan's epsilon is computed from its mechanism, never from a target."""

from dataclasses import replace

import pytest

from fedmedgen.errors import BudgetError, SettingsError
from fedmedgen.privacy import accountant
from fedmedgen.privacy.budget import Plan


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
