"""Real sites in a secure sum through the ClientApp: what each phase checks, spends and keeps, and what is refused."""

import json
import os
import secrets
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict

from fedmedgen.composition import compose
from fedmedgen.data import phantoms
from fedmedgen.data.cases import CaseSet
from fedmedgen.federation import local_round, local_statistics, messages, plan, records
from fedmedgen.federation.egress import Reply
from fedmedgen.federation.policy import SitePolicy
from fedmedgen.federation.secure_policy import Peer, SecureSumPolicy
from fedmedgen.federation.secure_sum import ring
from fedmedgen.federation.secure_sum.collecting import Collecting
from fedmedgen.federation.secure_sum.keys import write_identity
from fedmedgen.federation.secure_sum.own_part import Grid
from fedmedgen.federation.secure_sum.party import Advert, Opening
from fedmedgen.federation.secure_sum.terms import Terms
from fedmedgen.models import basis
from fedmedgen.privacy import statistics
from fedmedgen.privacy.ledger import Ledger, load_key
from fedmedgen.privacy.new_ledger import create_ledger
from fedmedgen.privacy.randomness import Stream
from fedmedgen.training.rows import encode
from sites.app import app

NAMES = ("east", "north", "south", "west")
STUDY = (
    "study=demo", "smoke=true", "data.size=[16,16]", "backend=deployment", "federation=secure-sum", "generator=moments",
    "segmenter.rounds=0", "statistics.share=1", "statistics.dimension=6", "generator.with_masks=false",
    "data.mask_classes=[]",
)  # fmt: skip
PATIENTS = 16


@dataclass
class Sum:
    """A server that asks four sites, and may be told to lie."""

    policies: dict[str, SitePolicy]
    words: tuple[str, ...] = STUDY
    session: str = field(default_factory=lambda: secrets.token_hex(16))

    def __post_init__(self) -> None:
        self.settings = compose(self.words)
        shown = phantoms.draw("chest", 40, size=(16, 16), seed=9, classes=self.settings.data.classes, mask_classes=())
        self.arrays = basis.pca(encode(shown, ()), 6).to_arrays()
        self.noise = plan.noise_multipliers(self.settings)
        layout = local_statistics.layout_of(self.settings, 6)
        self.agreed = plan.plan(
            self.settings, noise=0.0, patients=20, labelled=0,
            statistics_noise=self.noise["statistics"], shared=plan.shared_noise(self.settings, len(NAMES)),
        )  # fmt: skip
        shared = self.agreed.shared
        assert shared is not None
        self.grid = Grid(self.agreed.stages[0], shared, layout.size)
        task = messages.unpack_request(self.round()).digest
        self.terms = Terms(
            session=self.session, task=task, attempt=1, sites=NAMES, threshold=shared.threshold,
            colluders=shared.colluders, length=layout.size, width=self.grid.width(80),
            masked=self.settings.federation.masks,
        )  # fmt: skip
        self.collecting = Collecting(self.terms)

    def round(self, **words: Any) -> RecordDict:
        config = messages.request_config("run-1", plan.STATISTICS, self.settings, 0.0, self.noise["statistics"])
        config[records.SERVER_ROUND] = 1
        for key, value in words.items():
            config[key.replace("_", "-")] = value
        return RecordDict({records.CONFIG: config, records.ARRAYS: messages.pack_arrays(self.arrays)})

    def ask(self, site: str, phase: str, words: Any, **changed: Any) -> Reply:
        config: dict[str, Any] = {}
        if phase in (records.ADVERTISE, records.MASK):
            config = dict(self.round(**changed).config_records[records.CONFIG])
        config |= {records.SESSION: self.session, records.MASKING: json.dumps(words)}
        content = RecordDict({records.CONFIG: ConfigRecord(config)})
        if phase == records.MASK:
            content[records.ARRAYS] = messages.pack_arrays(self.arrays)
        return self.deliver(site, phase, content)

    def deliver(self, site: str, phase: str, content: RecordDict) -> Reply:
        context = Context(
            1, 7, {"policy": str(Path(self.policies[site].folder).with_name("policy.yaml"))}, RecordDict(), {}
        )
        answer = app(Message(content, dst_node_id=7, message_type=records.of_phase(phase)), context)
        return messages.unpack_reply(answer.content)

    def until(self, phase: str, sites: tuple[str, ...] = NAMES) -> "Sum":
        """All phases up to and with one."""
        sums = self.collecting
        for now in records.PHASES[: records.PHASES.index(phase) + 1]:
            for site in sites:
                said = self.ask(site, now, self.words_for(site, now))
                assert said.config[records.STATUS] == records.DONE, (site, now)
                words = json.loads(said.config.get(records.MASKING, "null"))
                if now == records.ADVERTISE:
                    sums.adverts[site] = Advert(*words)
                elif now == records.SHARE:
                    sums.sealed[site] = words
                elif now == records.MASK:
                    sums.add(site, ring.unpack(np.asarray(said.arrays[records.MASKED]), self.terms.width))
                elif now == records.AGREE:
                    sums.signatures[site] = words
                else:
                    sums.openings[site] = Opening(**words)
        return self

    def words_for(self, site: str, phase: str) -> Any:
        sums = self.collecting
        return {
            records.ADVERTISE: self.terms.to_mapping(), records.SHARE: sums.adverts, records.MASK: sums.for_site(site),
            records.AGREE: {"finished": sums.finished}, records.UNMASK: sums.signatures,
        }[phase]  # fmt: skip

    def events(self, site: str) -> list[str]:
        path = self.policies[site].ledger_path
        return [json.loads(line)["event"] for line in path.read_text().splitlines()] if path.is_file() else []


def cases_of(seed: int) -> CaseSet:
    classes = compose(STUDY).data.classes
    drawn = phantoms.draw("chest", PATIENTS, size=(16, 16), seed=seed, classes=classes, mask_classes=())
    cases = tuple(replace(case, site="", patient=f"p{number}") for number, case in enumerate(drawn))
    return CaseSet(cases, classes, ())


@pytest.fixture
def policies(identity: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, SitePolicy]:
    monkeypatch.setattr("sites.opening.require_checked_bundle", lambda _: None)
    monkeypatch.setattr("sites.opening.own_cases", lambda policy, _: cases_of(NAMES.index(policy.site)))
    peers = []
    for name in NAMES:
        (tmp_path / name).mkdir()
        peers.append(Peer(site=name, identity=write_identity(tmp_path / name / "identity.key")))
    made = {}
    for name in NAMES:
        made[name] = SitePolicy(
            site=name, folder=str(tmp_path / name / "state"), patients_declared=20, labelled_declared=0,
            lifetime_epsilon=10.0, lifetime_delta=1e-5, data_root=str(tmp_path / name),
            secure_sum=SecureSumPolicy(
                lifetime_epsilon_alone=60.0, identity=str(tmp_path / name / "identity.key"), peers=tuple(peers)
            ),
        )  # fmt: skip
        rewrite(made[name])
        create_ledger(made[name].ledger_path, key_path=made[name].key_path, head_path=made[name].head_path)
    return made


def rewrite(policy: SitePolicy, **changes: Any) -> None:
    replace(policy, **changes).write(Path(policy.folder).with_name("policy.yaml"))


def exact(sum_: Sum, sites: tuple[str, ...] = NAMES) -> np.ndarray:
    """The clipped sum of the patients' vectors, without noise."""
    stage = plan.stage_named(sum_.settings, plan.STATISTICS)
    asked = local_statistics.LocalRound(sum_.settings, stage, 1, sum_.agreed.stages[0])
    vectors = [
        v for name in sites for v in local_statistics.vectors_of(asked, sum_.arrays, cases_of(NAMES.index(name)))
    ]
    return statistics.clipped_sum(vectors, 1.0, sum_.terms.length).numpy()


def test_the_sum_is_the_patients_sum_and_the_noise_that_was_promised(policies: dict[str, SitePolicy]) -> None:
    asked = Sum(policies).until(records.UNMASK)
    total = ring.to_whole(asked.collecting.sum(), asked.terms.width) / asked.grid.cells
    noise = total - exact(asked)
    shared = asked.agreed.shared
    assert shared is not None
    size = shared.total(asked.agreed.stages[0].noise_multiplier, len(NAMES))
    assert noise.std() == pytest.approx(size, rel=5 / np.sqrt(2 * noise.size))
    assert abs(noise.mean()) < 5 * size / np.sqrt(noise.size)


def test_the_spend_is_in_the_ledger_with_both_claims_before_a_case_is_read(
    policies: dict[str, SitePolicy], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Sum(policies).until(records.SHARE)
    assert asked.events("north") == []  # nothing was learned yet
    seen: list[list[str]] = []
    monkeypatch.setattr("sites.opening.own_cases", lambda *_: seen.append(asked.events("north")) or cases_of(1))
    assert (
        asked.ask("north", records.MASK, asked.words_for("north", records.MASK)).config[records.STATUS] == records.DONE
    )
    assert seen == [["open", "reserve"]]
    first = json.loads(policies["north"].ledger_path.read_text().splitlines()[0])
    assert (first["epsilon"], first["alone"]) == (asked.agreed.epsilon, asked.agreed.epsilon_alone)
    assert first["mapping"]["shared"] == {"sites": 4, "threshold": 4, "colluders": 1}


def test_another_attempt_is_another_spend_and_beyond_the_plan_there_is_none(policies: dict[str, SitePolicy]) -> None:
    words = (*STUDY, "federation.attempts=2")
    for count in (1, 2):
        Sum(policies, words).until(records.MASK)
        policy = policies["north"]
        ledger = Ledger(policy.ledger_path, key=load_key(policy.key_path), head_path=policy.head_path)
        (spent,) = ledger.spent().plans.values()
        assert spent.reserved["statistics"] == count
    third = Sum(policies, words).until(records.SHARE)
    said = third.ask("north", records.MASK, third.words_for("north", records.MASK))
    assert (said.config[records.STATUS], dict(said.arrays)) == (records.REFUSED_BUDGET, {})


def test_two_attempts_have_nothing_in_common_but_the_patients(policies: dict[str, SitePolicy]) -> None:
    words = (*STUDY, "federation.attempts=2")
    totals = []
    for _ in range(2):
        asked = Sum(policies, words).until(records.UNMASK)
        totals.append(ring.to_whole(asked.collecting.sum(), asked.terms.width) / asked.grid.cells)
    noise = [total - exact(asked) for total in totals]
    assert abs(np.corrcoef(noise)[0, 1]) < 5 / np.sqrt(noise[0].size)


def test_a_message_twice_or_a_session_twice_is_refused_and_nothing_leaves(policies: dict[str, SitePolicy]) -> None:
    asked = Sum(policies).until(records.UNMASK)
    for phase in records.PHASES:
        said = asked.ask("north", phase, asked.words_for("north", phase))
        assert said.config == {records.SITE: "north", records.STATUS: records.REFUSED_POLICY}
    assert asked.events("north") == ["open", "reserve"]
    stored = (Path(policies["north"].folder) / "sums" / f"{asked.session}.sum").read_text()
    assert json.loads(stored)["seed"] == json.loads(stored)["masking"] == ""


@pytest.mark.parametrize("phase", [records.ADVERTISE, records.SHARE])
def test_a_sum_that_nobody_finishes_is_forgotten_after_a_day(policies: dict[str, SitePolicy], phase: str) -> None:
    left = Sum(policies).until(phase)
    stored = Path(policies["north"].folder) / "sums" / f"{left.session}.sum"
    assert json.loads(stored.read_text())["masking"]
    age(stored, 86_500)
    Sum(policies).until(records.ADVERTISE)
    require_empty(stored)


def age(stored: Path, seconds: float) -> None:
    """As if the session had begun so long before."""
    words = json.loads(stored.read_text())
    stored.write_text(json.dumps({**words, "begun": words["begun"] - seconds}))


def require_empty(stored: Path) -> None:
    words = json.loads(stored.read_text())
    assert (words["seed"], words["masking"], words["sealing"], words["held"]) == ("", "", "", {})


def test_a_session_that_is_asked_for_again_and_again_isnt_kept_open_by_that(policies: dict[str, SitePolicy]) -> None:
    left = Sum(policies).until(records.SHARE)
    stored = Path(policies["north"].folder) / "sums" / f"{left.session}.sum"
    before = stored.stat()
    said = left.ask("north", records.SHARE, left.collecting.adverts)  # out of its turn: nothing is written
    assert said.config[records.STATUS] == records.REFUSED_POLICY
    assert (stored.stat().st_mtime_ns, stored.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    age(stored, 86_500)
    os.utime(stored)
    said = left.ask("north", records.MASK, left.words_for("north", records.MASK))
    assert said.config == {records.SITE: "north", records.STATUS: records.REFUSED_POLICY}
    require_empty(stored)
    assert left.events("north") == []


def test_what_a_process_that_died_left_is_forgotten_when_the_next_study_begins(
    policies: dict[str, SitePolicy],
) -> None:
    left = Sum(policies).until(records.SHARE)
    stored = Path(policies["north"].folder) / "sums" / f"{left.session}.sum"
    draft = stored.with_name(f"{left.session}.99.draft")
    draft.write_text(stored.read_text())
    age(stored, 86_500)
    os.utime(draft, (time.time() - 700, time.time() - 700))
    stored.with_name(f"{'0' * 32}.sum").write_text("{")  # a damaged one keeps the site from no study
    content = RecordDict({records.CONFIG: ConfigRecord({records.SETTINGS: messages.pack_settings(left.settings)})})
    policy = {"policy": str(Path(policies["north"].folder).with_name("policy.yaml"))}
    answer = app(Message(content, dst_node_id=7, message_type="query"), Context(1, 7, policy, RecordDict(), {}))
    assert messages.unpack_reply(answer.content).config[records.STATUS] == records.DONE
    assert not draft.exists()
    require_empty(stored)


def test_a_server_can_leave_only_so_many_sums_open(
    policies: dict[str, SitePolicy], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sites.sums.OPEN_AT_ONCE", 2)
    Sum(policies).until(records.UNMASK)  # a finished one isn't open
    for _ in range(2):
        Sum(policies).until(records.ADVERTISE)
    third = Sum(policies)
    said = third.ask("north", records.ADVERTISE, third.words_for("north", records.ADVERTISE))
    assert said.config[records.STATUS] == records.REFUSED_POLICY
    assert not (Path(policies["north"].folder) / "sums" / f"{third.session}.sum").exists()


def test_vectors_go_without_masks_only_where_the_study_says_so(
    policies: dict[str, SitePolicy], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rewrite(policies["north"], secure_sum=replace(policies["north"].secure_sum, unmasked_allowed=True))
    asked = Sum(policies)
    told = replace(asked.terms, masked=False, colluders=len(NAMES) - 1, threshold=len(NAMES))
    monkeypatch.setattr("sites.secure_sum.plan.shared_noise", lambda *_: told.shared)
    said = asked.ask("north", records.ADVERTISE, told.to_mapping())
    assert said.config[records.STATUS] == records.REFUSED_POLICY
    assert "mask vectors otherwise than the study's settings say" in caplog.text


CLEAR = (*STUDY, "federation.colluders=3", "federation.masks=false")


def test_a_site_gives_its_vector_in_the_clear_only_where_its_policy_says_so_and_then_with_all_of_the_noise(
    policies: dict[str, SitePolicy], caplog: pytest.LogCaptureFixture
) -> None:
    asked = Sum(policies, CLEAR)
    said = asked.ask("north", records.ADVERTISE, asked.terms.to_mapping())
    assert said.config[records.STATUS] == records.REFUSED_POLICY
    assert "secure_sum.unmasked_allowed: false" in caplog.text
    assert asked.events("north") == []
    for policy in policies.values():
        rewrite(policy, secure_sum=replace(policy.secure_sum, unmasked_allowed=True))
    asked = Sum(policies, CLEAR)
    seen: dict[str, np.ndarray] = {}
    add = asked.collecting.add

    def watched(site: str, vector: Any) -> None:
        seen[site] = ring.to_whole(vector.copy(), asked.terms.width) / asked.grid.cells
        add(site, vector)

    asked.collecting.add = watched  # type: ignore[method-assign]
    asked.until(records.UNMASK)
    size = asked.agreed.stages[0].noise_multiplier
    for site, vector in seen.items():
        noise = vector - exact(asked, (site,))
        assert noise.std() == pytest.approx(size, rel=5 / np.sqrt(2 * noise.size))
    total = ring.to_whole(asked.collecting.sum(), asked.terms.width) / asked.grid.cells
    assert np.allclose(total, np.sum(list(seen.values()), axis=0))


@pytest.mark.parametrize(
    "change",
    [
        {"threshold": 3}, {"colluders": 2}, {"sites": ["east", "north", "south"]}, {"length": 3},
        {"sites": ["east", "north", "other", "south"]}, {"sites": ["east", "other", "south", "west"]},
        {"task": "0" * 64}, {"masked": False},
    ],
    ids=str,
)  # fmt: skip
def test_terms_that_weaken_the_claim_or_are_of_something_else_are_refused_before_anything_is_spent(
    policies: dict[str, SitePolicy], change: dict[str, Any]
) -> None:
    asked = Sum(policies)
    asked.terms = Terms.from_mapping({**asked.terms.to_mapping(), "sites": NAMES}) if not change else asked.terms
    told = {**asked.terms.to_mapping(), **change}
    said = asked.ask("north", records.ADVERTISE, told)
    if said.config[records.STATUS] == records.DONE:  # of length and task a site knows with the round itself
        asked.terms = Terms.from_mapping(told)
        asked.session = secrets.token_hex(16)
        asked.terms = replace(asked.terms, session=asked.session)
        asked.collecting = Collecting(asked.terms)
        asked.until(records.SHARE)
        said = asked.ask("north", records.MASK, asked.words_for("north", records.MASK))
    assert (said.config[records.STATUS], dict(said.arrays)) == (records.REFUSED_POLICY, {})
    assert asked.events("north") == []


@pytest.mark.parametrize(
    "changes",
    [
        {"lifetime_epsilon_alone": 0.0}, {"lifetime_epsilon_alone": 5.0}, {"smallest_colluders": 2}, {"peers": ()},
    ],
    ids=str,
)  # fmt: skip
def test_a_policy_that_allows_less_refuses(policies: dict[str, SitePolicy], changes: dict[str, Any]) -> None:
    rewrite(policies["north"], secure_sum=replace(policies["north"].secure_sum, **changes))
    asked = Sum(policies)
    said = asked.ask("north", records.ADVERTISE, asked.terms.to_mapping())
    assert said.config == {records.SITE: "north", records.STATUS: records.REFUSED_POLICY}
    assert asked.events("north") == []


def test_a_study_of_secure_sums_gets_no_round_of_its_own(policies: dict[str, SitePolicy]) -> None:
    """Else a server would have one site's vector without its masks."""
    asked = Sum(policies)
    context = Context(1, 7, {"policy": str(Path(policies["north"].folder).with_name("policy.yaml"))}, RecordDict(), {})
    answer = app(Message(asked.round(), dst_node_id=7, message_type="train"), context)
    assert messages.unpack_reply(answer.content).config[records.STATUS] == records.REFUSED_POLICY


def test_a_network_that_is_too_large_is_refused_before_it_is_built(
    policies: dict[str, SitePolicy], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [word for word in STUDY if not word.startswith(("generator=", "statistics."))]
    settings = compose([*words, "generator=unet", "statistics.share=0", "rounds=1", "privacy.generator_steps=1"])
    rewrite(policies["north"], largest_parameters=1000)
    build, built = local_round.build_model, []

    def watched(*given: Any) -> Any:
        model = build(*given)
        built.append(next(model.parameters()).device.type)
        return model

    monkeypatch.setattr(local_round, "build_model", watched)
    noise = plan.of_rounds(plan.noise_multipliers(settings))
    config = dict(messages.request_config("run-1", plan.GENERATOR, settings, noise, 0.0))
    shared, asked = plan.shared_noise(settings, len(NAMES)), Sum(policies)
    assert shared is not None
    terms = replace(asked.terms, threshold=shared.threshold, colluders=shared.colluders)
    config |= {records.SERVER_ROUND: 1, records.SESSION: asked.session, records.MASKING: json.dumps(terms.to_mapping())}
    said = asked.deliver("north", records.ADVERTISE, RecordDict({records.CONFIG: ConfigRecord(config)}))
    assert said.config[records.STATUS] == records.REFUSED_POLICY
    assert built == ["meta"]


def test_noise_that_the_sampler_cant_draw_is_refused_before_a_key_is_made(
    policies: dict[str, SitePolicy], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedmedgen.privacy.rounding.MOST_RATE", 4000.0)
    asked = Sum(policies)
    said = asked.ask("north", records.ADVERTISE, asked.terms.to_mapping())
    assert said.config[records.STATUS] == records.REFUSED_POLICY
    assert asked.events("north") == []
    assert not list((Path(policies["north"].folder) / "sums").glob("*.sum"))


def test_less_noise_than_the_claim_needs_is_refused(policies: dict[str, SitePolicy]) -> None:
    asked = Sum(policies)
    said = asked.ask(
        "north", records.ADVERTISE, asked.terms.to_mapping(), statistics_noise=asked.noise["statistics"] / 2
    )
    assert said.config[records.STATUS] == records.REFUSED_POLICY


def test_another_round_than_the_one_whose_terms_were_signed_is_refused(policies: dict[str, SitePolicy]) -> None:
    asked = Sum(policies).until(records.SHARE)
    asked.arrays["basis.scale"] = asked.arrays["basis.scale"] * 2
    said = asked.ask("north", records.MASK, asked.words_for("north", records.MASK))
    assert (said.config[records.STATUS], dict(said.arrays)) == (records.REFUSED_POLICY, {})
    assert asked.events("north") == []


@pytest.mark.parametrize("words", [[], {}, {"finished": 3}, {"finished": ["north"]}, {"north": [1]}, "text", 7, None])
@pytest.mark.parametrize("phase", [records.SHARE, records.AGREE, records.UNMASK])
def test_words_of_no_phase_are_refused(policies: dict[str, SitePolicy], phase: str, words: Any) -> None:
    asked = Sum(policies)
    asked.ask("north", records.ADVERTISE, asked.terms.to_mapping())
    assert asked.ask("north", phase, words).config[records.STATUS] == records.REFUSED_POLICY


def test_a_session_of_another_name_reaches_no_other_file(policies: dict[str, SitePolicy]) -> None:
    for session in ("../../policy", "", "g" * 32, "0" * 31):
        asked = Sum(policies)
        asked.session = session
        assert asked.ask("north", records.SHARE, {}).config[records.STATUS] == records.REFUSED_POLICY


def test_a_fault_in_the_data_yields_noise_under_the_masks(
    policies: dict[str, SitePolicy], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(asked: Any, arrays: Any, cases: CaseSet, stream: Stream) -> list[Any]:
        if len(cases):
            raise RuntimeError("a disk that fails")
        return []

    monkeypatch.setattr("sites.secure_sum.own_vectors", broken)
    asked = Sum(policies).until(records.UNMASK)
    noise = ring.to_whole(asked.collecting.sum(), asked.terms.width) / asked.grid.cells
    shared = asked.agreed.shared
    assert shared is not None
    assert noise.std() == pytest.approx(shared.total(asked.agreed.stages[0].noise_multiplier, 4), rel=0.3)


def test_a_real_sites_part_is_not_seeded(policies: dict[str, SitePolicy], monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[bool] = []
    plain = Stream.system
    monkeypatch.setattr(Stream, "system", lambda: made.append(True) or plain())
    monkeypatch.setattr(Stream, "seeded", lambda *_: pytest.fail("a seed at a real site"))
    Sum(policies).until(records.MASK)
    assert len(made) >= len(NAMES)
