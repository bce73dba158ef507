"""Canaries at a site: planted by its own policy, told to nobody, there when all patients' data fail."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fedmedgen.composition import compose
from fedmedgen.data import holdout
from fedmedgen.data.cases import CaseSet
from fedmedgen.data.crafted import is_crafted
from fedmedgen.errors import PolicyError
from fedmedgen.federation import records
from fedmedgen.federation.egress import Reply
from fedmedgen.federation.local_round import LocalResult, LocalRound
from fedmedgen.federation.own_data import own_cases
from fedmedgen.federation.plan import Stage
from fedmedgen.federation.policy import check_request
from fedmedgen.privacy.canary_record import CanaryRecord
from fedmedgen.privacy.ledger import load_key
from fedmedgen.privacy.randomness import Stream
from sites import site
from sites.canaries import Planting


@pytest.fixture(autouse=True)
def one_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same noise in every answer, so that what else decides a reply is seen bit by bit."""
    monkeypatch.setattr(Stream, "system", staticmethod(lambda: Stream.seeded(11)))


def record_of(server: Any) -> CanaryRecord:
    return CanaryRecord.of(Path(server.policy.folder), "run-1")


def same(one: Reply, other: Reply) -> bool:
    return all((one.arrays[name] == other.arrays[name]).all() for name in other.arrays)


def test_with_audits_off_nothing_is_planted(server: Any) -> None:
    assert server.ask().config[records.STATUS] == records.DONE
    assert not (Path(server.policy.folder) / "canaries").exists()


def test_the_sites_policy_plants_canaries_and_no_message_tells_of_them(server: Any) -> None:
    plain, audited = server.ask(), server.at(audit_canaries=24, folder=server.policy.folder + "-audited")
    reply = audited.ask()
    known = record_of(audited).read()
    assert known["count"] == 24
    assert len(known["scores"]) == 1
    assert reply.config == plain.config
    assert reply.metrics == plain.metrics
    assert {name: value.shape for name, value in reply.arrays.items()} == {
        name: value.shape for name, value in plain.arrays.items()
    }
    assert not same(reply, plain)


def test_a_server_can_neither_plant_canaries_nor_hold_patients_out(server: Any) -> None:
    for words in ("audit.canaries=24", "audit.holdout=0.5"):
        asking = server.asking(words)
        with pytest.raises(PolicyError, match="only a simulation may"):
            check_request(server.policy, asking.settings, parameters=0)
        assert asking.ask().config[records.STATUS] == records.DONE
        assert not (Path(asking.policy.folder) / "canaries").exists()


def test_the_same_request_is_answered_free_and_scores_nothing_more(server: Any) -> None:
    audited = server.at(audit_canaries=24)
    first = audited.ask()
    scores = record_of(audited).read()["scores"]
    assert same(audited.ask(), first)
    assert record_of(audited).read()["scores"] == scores


@pytest.mark.parametrize("kind", ["directions", "images"])
def test_canaries_are_there_when_all_patients_data_fail(
    server: Any, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    audited = server.at(audit_canaries=24, audit_kind=kind)
    seen: list[tuple[int, bool]] = []
    right = site.local_round.run

    def failing(asked: Any, arrays: Any, cases: CaseSet, *, stream: Stream) -> Any:
        patients = [case for case in cases if not is_crafted([case])]
        seen.append((len(cases) - len(patients), asked.canaries is not None))
        if patients:
            raise RuntimeError("a fault of the data")
        return right(asked, arrays, cases, stream=stream)

    monkeypatch.setattr(site.local_round, "run", failing)
    assert audited.ask().config[records.STATUS] == records.DONE
    assert len(seen) == 2
    assert seen[0] == seen[1]
    assert seen[0][0] > 0 or seen[0][1]


@pytest.mark.parametrize(("stage", "some"), [("statistics", True), ("generator", True), ("segmenter", False)])
def test_images_are_planted_where_an_attack_can_read_them(tmp_path: Path, stage: str, some: bool) -> None:
    settings = compose(["study=demo"])
    record = CanaryRecord.of(tmp_path, "run-1")
    record.plant(run="run-1", kind="images", count=24, stream=Stream.seeded(0))
    seen: list[int] = []

    def looking(_: LocalRound, cases: CaseSet) -> LocalResult:
        seen.append(len(cases))
        return LocalResult({}, None, {})

    cases = CaseSet((), tuple(settings.data.classes), tuple(settings.data.mask_classes))
    request: Any = None  # scores of directions alone are kept under it
    Planting(record, request, "images").run(looking, LocalRound(settings, Stage(stage, 1, 1, 1e-3), 1, None), cases)
    assert (seen[0] > 0) == some


def test_a_split_that_fails_gives_noise_and_no_fault(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(cases: CaseSet, share: float, key: bytes) -> Any:
        raise RuntimeError("a patient whose id can't be read")

    monkeypatch.setattr(holdout, "split", failing)
    assert server.at(audit_holdout=0.5).ask().config[records.STATUS] == records.DONE


@pytest.mark.parametrize("place", ["canaries", "held-out"])
def test_records_that_can_not_be_written_stop_the_round_before_the_spend(server: Any, place: str) -> None:
    server.create()
    (Path(server.policy.folder) / place).write_text("in the way")
    assert server.at(audit_canaries=24).ask().config[records.STATUS] == records.FAULT
    assert not server.spent
    (Path(server.policy.folder) / place).unlink()
    assert server.at(audit_canaries=24).ask().config[records.STATUS] == records.DONE


def test_patients_held_out_never_reach_a_round(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    audited = server.at(audit_holdout=0.5)
    seen: list[str] = []
    right = site.local_round.run

    def looking(asked: Any, arrays: Any, cases: CaseSet, *, stream: Stream) -> Any:
        seen.extend(str(case.patient) for case in cases)
        return right(asked, arrays, cases, stream=stream)

    monkeypatch.setattr(site.local_round, "run", looking)
    assert audited.ask().config[records.STATUS] == records.DONE
    everyone = site.Site(audited.policy_read, server_cases(audited)).load(audited.settings)
    _, held = holdout.split(everyone, 0.5, load_key(audited.policy_read.key_path))
    assert 0 < len(held) < len(everyone)
    assert not set(seen) & {str(case.patient) for case in held}


def server_cases(server: Any) -> Any:
    return partial(own_cases, server.policy_read)
