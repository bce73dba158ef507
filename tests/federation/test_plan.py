"""The plan a study asks of each site keeps within what it claims."""

import pytest

from fedmedgen.composition import compose
from fedmedgen.federation import plan
from fedmedgen.settings import Settings


@pytest.fixture(scope="module")
def settings() -> Settings:
    return compose(["study=demo", "smoke=true"])


def test_the_noise_covers_all_stages_and_stays_just_within_epsilon(settings: Settings) -> None:
    agreed = plan.plan(settings, noise=plan.noise_multiplier(settings), patients=100, labelled=100)
    assert 0.98 * settings.privacy.epsilon < agreed.epsilon <= settings.privacy.epsilon


def test_noise_for_fewer_steps_would_exceed_the_claim(settings: Settings) -> None:
    short = Settings.from_mapping({**settings.to_mapping(), "segmenter": {"rounds": 0}})
    agreed = plan.plan(settings, noise=plan.noise_multiplier(short), patients=100, labelled=100)
    assert agreed.epsilon > settings.privacy.epsilon


def test_without_masks_or_rounds_there_is_no_segmenter_stage(settings: Settings) -> None:
    assert [stage.name for stage in plan.stages(settings)] == ["generator", "segmenter"]
    assert [stage.name for stage in plan.stages(compose(["study=pneumonia", "smoke=true"]))] == ["generator"]


def test_each_stage_has_its_own_public_denominator(settings: Settings) -> None:
    agreed = plan.plan(settings, noise=1.0, patients=120, labelled=40)
    assert [stage.denominator_patients for stage in agreed.stages] == [120, 40]


def test_a_public_count_is_rounded_up() -> None:
    assert [plan.rounded_up(count) for count in (0, 1, 10, 11, 506)] == [0, 10, 10, 20, 510]
