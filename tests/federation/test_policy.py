"""A request outside the site's own limits is refused, with what was asked and what is allowed."""

from dataclasses import replace
from pathlib import Path

import pytest

from fedmedgen.composition import compose
from fedmedgen.errors import PolicyError, SettingsError
from fedmedgen.federation import plan
from fedmedgen.federation.policy import SitePolicy, check_plan, check_request


@pytest.fixture
def policy() -> SitePolicy:
    return SitePolicy(
        site="north",
        folder="state",
        patients_declared=500,
        labelled_declared=100,
        lifetime_epsilon=10.0,
        lifetime_delta=1e-5,
        data_root="films",
        largest_clip_norm=2.0,
        largest_sample_rate=0.3,
        smallest_noise_multiplier=0.5,
    )


@pytest.mark.parametrize(
    ("words", "refusal"),
    [
        ("privacy.clip_norm=1e9", "clip norm"),
        ("privacy.clip_norm=1e-42", "clip norm"),
        ("privacy.noise_draws=1000000", "rows per patient"),
        ("data.size=[100000,100000]", "pixels"),
        ("privacy.sample_rate=1.0", "sample rate"),
        ("rounds=1000000", "rounds"),
        ("privacy.generator_steps=100000", "steps"),
        ("privacy=none", "privacy=none"),
    ],
)
def test_a_greedy_request_is_refused(policy: SitePolicy, words: str, refusal: str) -> None:
    with pytest.raises(PolicyError, match=refusal):
        check_request(policy, compose(["study=demo", words]), parameters=1000)


def test_a_huge_model_is_refused(policy: SitePolicy) -> None:
    with pytest.raises(PolicyError, match="parameters"):
        check_request(policy, compose(["study=demo"]), parameters=10**9)


@pytest.mark.parametrize("noise", [0.01, 0.499])
def test_too_little_noise_is_refused(policy: SitePolicy, noise: float) -> None:
    agreed = plan.plan(compose(["study=demo"]), noise=noise, patients=500, labelled=100)
    with pytest.raises(PolicyError, match="noise multiplier"):
        check_plan(policy, agreed)


def test_a_plan_above_the_lifetime_epsilon_is_refused(policy: SitePolicy) -> None:
    agreed = plan.plan(compose(["study=demo"]), noise=0.6, patients=500, labelled=100)
    assert agreed.epsilon > 1
    with pytest.raises(PolicyError, match="epsilon"):
        check_plan(replace(policy, lifetime_epsilon=1.0), agreed)


@pytest.mark.parametrize("stage", ["segmenter", "anything"])
def test_a_stage_that_the_study_or_the_site_lacks_is_refused(policy: SitePolicy, stage: str) -> None:
    with pytest.raises(PolicyError, match=r"stage|masks"):
        check_request(replace(policy, labelled_declared=0), compose(["study=demo"]), parameters=1, stage=stage)


def test_a_policy_that_lacks_something_says_what() -> None:
    with pytest.raises(SettingsError, match=r"must set .*lifetime_epsilon"):
        SitePolicy.from_mapping({"site": "north", "folder": "state"})


def test_a_delta_too_large_for_the_site_is_refused(policy: SitePolicy) -> None:
    with pytest.raises(SettingsError, match="lifetime_delta"):
        replace(policy, lifetime_delta=1e-3)


def test_only_a_simulation_may_run_without_privacy(policy: SitePolicy) -> None:
    with pytest.raises(SettingsError, match="no_privacy_allowed"):
        replace(policy, no_privacy_allowed=True)


def test_a_policy_survives_its_file_and_its_paths_start_from_there(policy: SitePolicy, tmp_path: Path) -> None:
    policy.write(tmp_path / "policy.yaml")
    beside = replace(policy, folder=str(tmp_path / "state"), data_root=str(tmp_path / "films"))
    assert SitePolicy.read(tmp_path / "policy.yaml") == beside


def test_a_missing_policy_says_where_it_was_expected(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"nowhere\.yaml"):
        SitePolicy.read(tmp_path / "nowhere.yaml")
