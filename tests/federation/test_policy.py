"""A request outside the site's own limits is refused, with what was asked and what is allowed."""

from dataclasses import replace
from pathlib import Path

import pytest

from fedmedgen.composition import compose
from fedmedgen.errors import PolicyError, SettingsError
from fedmedgen.federation import plan, records
from fedmedgen.federation.policy import SitePolicy, check_plan, check_request, for_real_sites
from fedmedgen.settings import PhantomSettings, Settings


def asked(*words: str) -> Settings:
    """What a server in a deployment asks of a real site."""
    return for_real_sites(compose(["study=demo", "data.root=/the/servers/own", *words]))


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
        ("privacy.sample_rate=1e-9", "sample rate"),
        (f"generator.channels={[8] * 14} generator.attention={[False] * 14}".replace(", ", ","), "levels"),
        ("data.size=[8,32768]", "side"),
        ("data.size=[512,512] generator.images_per_patient=64", "numbers in one layer"),
        ("privacy=none", "privacy=none"),
    ],
)
def test_a_greedy_request_is_refused(policy: SitePolicy, words: str, refusal: str) -> None:
    with pytest.raises(PolicyError, match=refusal):
        check_request(policy, asked(*words.split()), parameters=1000)


@pytest.mark.parametrize(
    "word",
    ["data.root=/etc", "data.max_patients=1", "data.columns.patient=label", "ledger.root=/tmp", "fault.site=north"],
)
def test_what_only_a_simulation_may_set_is_refused_by_a_real_site_alone(policy: SitePolicy, word: str) -> None:
    composed = compose(["study=demo", "backend=deployment", word])
    settings = replace(composed, out="", data=replace(composed.data, public=False, phantoms=PhantomSettings()))
    with pytest.raises(PolicyError, match=f"the request sets {word.partition('=')[0]} to"):
        check_request(policy, settings, parameters=1)
    check_request(replace(policy, simulation=True), settings, parameters=1)
    check_request(policy, for_real_sites(settings), parameters=1)


def test_real_sites_are_told_the_network_its_input_and_the_training() -> None:
    settings = compose(["study=demo", "backend=deployment"])
    told = for_real_sites(settings)
    assert (told.generator, told.segmenter, told.privacy, told.rounds, told.seed) == (
        settings.generator, settings.segmenter, settings.privacy, settings.rounds, settings.seed
    )  # fmt: skip
    assert (told.data.classes, told.data.mask_classes) == (settings.data.classes, settings.data.mask_classes)


def test_public_figures_are_the_policys_own_and_each_stage_has_its_weight(policy: SitePolicy) -> None:
    said = {records.SITE: "north", records.UNIT: "patient", records.SIMULATION: "no", records.PATIENTS: 500.0,
            records.LABELLED: 100.0}  # fmt: skip
    assert policy.public("generator") == {**said, records.WEIGHT: 500.0}
    assert policy.public("segmenter") == {**said, records.WEIGHT: 100.0}


def test_a_huge_model_is_refused(policy: SitePolicy) -> None:
    with pytest.raises(PolicyError, match="parameters"):
        check_request(policy, asked(), parameters=10**9)


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
        check_request(replace(policy, labelled_declared=0), asked(), parameters=1, stage=stage)


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
    policy = replace(policy, ledger_head="../other disk/head", kernel_cache="state/kernels.json")
    policy.write(tmp_path / "policy.yaml")
    head = str(tmp_path / "../other disk/head")
    folder, kernels = str(tmp_path / "state"), str(tmp_path / "state/kernels.json")
    beside = replace(
        policy, folder=folder, data_root=str(tmp_path / "films"), ledger_head=head, kernel_cache=kernels
    )  # fmt: skip
    assert SitePolicy.read(tmp_path / "policy.yaml") == beside


def test_a_missing_policy_says_where_it_was_expected(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"nowhere\.yaml"):
        SitePolicy.read(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize("text", ["site: [north", "\tsite: north", "north", "- north"])
def test_a_policy_that_is_no_policy_is_an_error_that_names_it(tmp_path: Path, text: str) -> None:
    (tmp_path / "policy.yaml").write_text(text)
    with pytest.raises((PolicyError, SettingsError), match="policy"):
        SitePolicy.read(tmp_path / "policy.yaml")
