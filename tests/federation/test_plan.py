"""The plan a study asks of each site keeps within what it claims."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from fedmedgen.composition import compose
from fedmedgen.data.cases import CaseSet
from fedmedgen.errors import PolicyError, ReplyError
from fedmedgen.federation import local_round, plan
from fedmedgen.federation.messages import Request
from fedmedgen.federation.policy import SitePolicy
from fedmedgen.privacy import accountant
from fedmedgen.settings import Settings
from server import strategy
from simulations.run import simulate
from sites.site import Site


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
    assert [stage.name for stage in plan.stages(compose(["study=pneumonia", "smoke=true"]))] == ["statistics"]


def test_each_stage_has_its_own_public_denominator(settings: Settings) -> None:
    agreed = plan.plan(settings, noise=1.0, patients=120, labelled=40)
    assert [stage.denominator_patients for stage in agreed.stages] == [120, 40]


def test_a_public_count_is_rounded_up() -> None:
    assert [plan.rounded_up(count) for count in (0, 1, 10, 11, 506)] == [0, 10, 10, 20, 510]


def test_noise_for_fewer_steps_is_refused_against_the_requests_own_claim(settings: Settings) -> None:
    noise = plan.noise_multiplier(settings)
    plan.check_claim(settings, plan.plan(settings, noise=noise, patients=100, labelled=100))
    short = Settings.from_mapping({**settings.to_mapping(), "segmenter": {"rounds": 0}})
    agreed = plan.plan(settings, noise=plan.noise_multiplier(short), patients=100, labelled=100)
    with pytest.raises(PolicyError, match=r"10 is allowed: at this noise the first \d of 6 steps fit"):
        plan.check_claim(settings, agreed)


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_the_statistics_take_their_share_and_all_stages_together_stay_within_epsilon(share: float) -> None:
    words = ["generator=moments", "segmenter.rounds=0"] if share == 1 else []
    study = compose(["study=demo", "smoke=true", f"statistics.share={share}", *words])
    noise = plan.noise_multipliers(study)
    agreed = plan.plan(study, noise=noise.get(plan.GENERATOR, 0.0), patients=100, labelled=80,
                       statistics_noise=noise[plan.STATISTICS])  # fmt: skip
    assert [stage.name for stage in agreed.stages] == [plan.STATISTICS, plan.GENERATOR, plan.SEGMENTER][: len(noise)]
    first = agreed.stages[0]
    assert (first.sample_rate, first.steps, first.clip_norm, first.denominator_patients) == (1.0, 1, 1.0, 100)
    target = study.privacy.epsilon
    assert 0.98 * share * target < agreed.epsilon_after({plan.STATISTICS: 1}) <= share * target
    assert 0.98 * target < agreed.epsilon <= target


@pytest.mark.parametrize("share", [0.5, 1.0])
@pytest.mark.parametrize("releases", [2, 4])
def test_more_releases_share_what_one_had_and_each_is_noisier(share: float, releases: int) -> None:
    words = ["generator=moments", "segmenter.rounds=0"] if share == 1 else []
    study = ["study=demo", "smoke=true", f"statistics.share={share}", *words]
    one, several = (compose([*study, f"statistics.rounds={count}"]) for count in (1, releases))
    noise = plan.noise_multipliers(several)
    once = plan.noise_multipliers(one)
    assert noise[plan.STATISTICS] == pytest.approx(once[plan.STATISTICS] * releases**0.5, rel=0.02)
    assert noise.get(plan.GENERATOR, 0.0) == pytest.approx(once.get(plan.GENERATOR, 0.0), rel=0.02)
    agreed = plan.plan(several, noise=noise.get(plan.GENERATOR, 0.0), patients=100, labelled=80,
                       statistics_noise=noise[plan.STATISTICS])  # fmt: skip
    assert (agreed.stages[0].steps, agreed.stages[0].sample_rate) == (releases, 1.0)
    target = several.privacy.epsilon
    first, whole = (agreed.epsilon_after({plan.STATISTICS: steps}) for steps in (1, releases))
    assert first < 0.98 * share * target < whole <= share * target
    assert 0.98 * target < agreed.epsilon <= target
    weak = plan.plan(several, noise=noise.get(plan.GENERATOR, 0.0), patients=100, labelled=80,
                     statistics_noise=once[plan.STATISTICS])  # fmt: skip
    with pytest.raises(PolicyError, match="doesn't keep the epsilon that it claims"):
        plan.check_claim(several, weak)


def test_statistics_that_take_all_leave_no_rounds_and_no_share_no_statistics(settings: Settings) -> None:
    alone = compose(["study=demo", "smoke=true", "generator=moments", "statistics.share=1", "segmenter.rounds=0"])
    assert [(stage.name, stage.total_steps) for stage in plan.stages(alone)] == [(plan.STATISTICS, 1)]
    assert plan.STATISTICS not in plan.noise_multipliers(settings)
    assert plan.noise_multiplier(alone) == 0


@pytest.mark.parametrize(
    "words",
    [["data.sites=2"], ["data.sites=50"], ["federation.min_sites=1"], ["federation.min_sites=40", "data.sites=40"],
     ["federation=fedadam"], ["data.partition=even"]],
)  # fmt: skip
def test_neither_the_number_of_sites_nor_who_takes_part_moves_noise_or_epsilon(
    settings: Settings, words: list[str]
) -> None:
    other = compose(["study=demo", "smoke=true", *words])
    noise = plan.noise_multiplier(settings)
    assert plan.noise_multiplier(other) == noise
    first, second = (plan.plan(each, noise=noise, patients=100, labelled=100) for each in (settings, other))
    assert (second.digest, second.epsilon) == (first.digest, first.epsilon)


def site_in(folder: Path, settings: Settings, *, lifetime_epsilon: float = 10.0) -> Site:
    """A site without cases: what it counts doesn't depend on them."""
    policy = SitePolicy(
        site="north", folder=str(folder), patients_declared=20, labelled_declared=20,
        lifetime_epsilon=lifetime_epsilon, lifetime_delta=1e-5, simulation=True,
    )  # fmt: skip
    return Site(policy, lambda _: CaseSet((), settings.data.classes, settings.data.mask_classes))


def ask(site: Site, settings: Settings, rounds: Sequence[int], noise: float) -> dict[str, int]:
    """Steps in a site's ledger after a server has asked it for these rounds and used none of the replies."""
    arrays = local_round.trainable_arrays(local_round.build_model(settings, plan.GENERATOR))
    for number in rounds:
        site.train(Request("run-1", plan.GENERATOR, number, settings, noise, 0.0, arrays))
    agreed = plan.plan(settings, noise=noise, patients=20, labelled=20)
    assert site.ledger().spent().epsilon == agreed.epsilon
    return site.ledger().steps_reserved("run-1", agreed.digest)


@pytest.mark.parametrize("fewer", [["segmenter.rounds=0"], ["rounds=1"]])
def test_a_site_refuses_noise_calibrated_for_fewer_steps_before_it_spends_anything(
    settings: Settings, tmp_path: Path, fewer: list[str]
) -> None:
    noise = plan.noise_multiplier(compose(["study=demo", "smoke=true", *fewer]))
    with pytest.raises(PolicyError, match=r"doesn't keep the epsilon that it claims.* noise multipliers of at least"):
        ask(site_in(tmp_path, settings, lifetime_epsilon=100.0), settings, [1], noise)
    assert not (tmp_path / "ledger.jsonl").exists()


@pytest.mark.parametrize("rounds", [[1], [1, 3], [1, 2, 3]])
def test_a_site_counts_its_own_steps_however_many_sites_take_part_and_whatever_becomes_of_its_replies(
    tmp_path: Path, rounds: list[int]
) -> None:
    counted = set()
    for sites in (2, 20):
        study = compose(["study=demo", "smoke=true", "data.size=[16,16]", "rounds=3", f"data.sites={sites}"])
        noise = plan.noise_multiplier(study)
        taken = ask(site_in(tmp_path / str(sites), study), study, rounds, noise)
        assert taken == {"generator": 2 * len(rounds), "segmenter": 0}
        agreed = plan.plan(study, noise=noise, patients=20, labelled=20)
        counted.add(agreed.epsilon_after(taken))
    assert counted == {accountant.epsilon(((0.2, noise, 2 * len(rounds)),), 1e-5)}


def test_a_site_whose_replies_were_rejected_has_spent_as_much_as_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, seen = strategy.check_reply, []

    def reject_the_first(*words: object, **rest: object) -> float:
        seen.append(words)
        if len(seen) % 3 == 1:
            raise ReplyError("the reply came too late to be combined")
        return plain(*words, **rest)

    monkeypatch.setattr(strategy, "check_reply", reject_the_first)
    words = ["study=demo", "smoke=true", "evaluation.enabled=false", "emission.count=6", "data.size=[16,16]",
             "data.phantoms.patients_per_site=12", "segmenter.rounds=0"]  # fmt: skip
    result = json.loads((simulate(words, out=str(tmp_path / "run")) / "result.json").read_text())
    assert [site["rounds"] for site in result["sites"].values()] == [0, 2, 2]
    agreed = plan.plan(compose(words), noise=result["privacy"]["noise_multiplier"], patients=10, labelled=10)
    assert {site["epsilon_run"] for site in result["sites"].values()} == {agreed.epsilon}


def test_a_release_and_a_private_fine_tuning_without_rounds_between_keep_epsilon(tmp_path: Path) -> None:
    words = ("study=demo", "smoke=true", "rounds=0", "statistics.share=0.5", "curriculum.steps=3", "segmenter.rounds=2",
             "evaluation.enabled=false")  # fmt: skip
    asked = compose(words)
    assert [stage.name for stage in plan.stages(asked)] == ["statistics", "segmenter"]
    noise = plan.noise_multipliers(asked)
    run = simulate(words, out=str(tmp_path / "run"))
    result = json.loads((run / "result.json").read_text())
    (steps,) = (stage["steps"] for stage in _plan_in(run / "sites/site-1/ledger.jsonl") if stage["name"] == "segmenter")
    parts = ((1.0, noise["statistics"], 1), (asked.privacy.sample_rate, noise["segmenter"], steps))
    spent = accountant.epsilon(parts, delta=asked.privacy.delta)
    assert spent == pytest.approx(result["privacy"]["epsilon"], rel=1e-6)
    assert 0.98 * asked.privacy.epsilon < spent <= asked.privacy.epsilon
    assert result["privacy"]["noise_multiplier"] == noise["segmenter"]


def _plan_in(ledger: Path) -> list[dict[str, object]]:
    events = map(json.loads, ledger.read_text().splitlines())
    return next(list(event["mapping"]["stages"]) for event in events if event["event"] == "open")
