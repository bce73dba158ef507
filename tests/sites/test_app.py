"""A real site, opened from its own policy file: what it grants, what it refuses, and what leaves it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict

from fedmedgen.composition import compose
from fedmedgen.data import phantoms
from fedmedgen.data.cases import CaseSet
from fedmedgen.emission.writing import write_set
from fedmedgen.errors import SettingsError
from fedmedgen.federation import local_round, messages, plan, records
from fedmedgen.federation.egress import Reply
from fedmedgen.federation.local_round import LocalResult, LocalRound
from fedmedgen.federation.policy import SitePolicy
from fedmedgen.privacy.randomness import Stream
from fedmedgen.settings import Settings
from sites.app import app

PATIENTS = 24


pytestmark = pytest.mark.usefixtures("identity")


@pytest.fixture(scope="module")
def settings() -> Settings:
    words = ["study=demo", "smoke=true", "data.size=[16,16]", "backend=deployment", "data.root=/server/says/so"]
    return compose(words)


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory, settings: Settings) -> Path:
    """A site's folder of radiographs, two for each patient."""
    folder = tmp_path_factory.mktemp("films") / "north"
    classes, masks = settings.data.classes, settings.data.mask_classes
    drawn = phantoms.draw("chest", 2 * PATIENTS, size=(16, 16), seed=1, classes=classes, mask_classes=masks)
    cases = tuple(replace(case, site="", patient=None) for case in drawn)
    write_set(CaseSet(cases, classes, masks), folder, datasheet={})
    lines = (folder / "labels.csv").read_text().splitlines()
    patients = ["patient", *(f"p{number // 2}" for number in range(2 * PATIENTS))]
    (folder / "labels.csv").write_text("\n".join(f"{a},{b}" for a, b in zip(lines, patients, strict=True)) + "\n")
    return folder


@pytest.fixture
def policy(tmp_path: Path, films: Path) -> SitePolicy:
    return SitePolicy(
        site="north",
        folder=str(tmp_path / "state"),
        patients_declared=30,
        labelled_declared=30,
        lifetime_epsilon=10.0,
        lifetime_delta=1e-5,
        data_root=str(films),
    )


def context(policy: SitePolicy) -> Context:
    path = Path(policy.folder).with_name("policy.yaml")
    policy.write(path)
    return Context(1, 7, {"policy": str(path)}, RecordDict(), {})


def ask(policy: SitePolicy, settings: Settings, **changes: object) -> Reply:
    """Ask the site for a round, as a server would; `changes` go into the request's config."""
    fill = float(str(changes.pop("fill", 0.0)))
    arrays: Any = changes.pop("arrays", None)
    if arrays is None:
        arrays = local_round.trainable_arrays(local_round.build_model(settings, "generator"))
        arrays = {key: value + np.float32(fill) for key, value in arrays.items()}
    noise = changes.pop("noise", None) or plan.noise_multiplier(settings)
    config = messages.request_config("run-1", "generator", settings, float(str(noise)))
    config[records.SERVER_ROUND] = 1
    for key, value in changes.items():
        config[key] = value  # type: ignore[assignment]
    content = RecordDict({records.ARRAYS: messages.pack_arrays(arrays), records.CONFIG: config})
    reply = app(Message(content, dst_node_id=7, message_type=MessageType.TRAIN), context(policy))
    return messages.unpack_reply(reply.content)


def spent(policy: SitePolicy) -> bool:
    return (Path(policy.folder) / "ledger.jsonl").exists()


def test_a_site_says_its_name_and_public_counts_and_nothing_else(policy: SitePolicy, settings: Settings) -> None:
    config = ConfigRecord({records.SETTINGS: json.dumps(settings.to_mapping())})
    asked = Message(RecordDict({records.CONFIG: config}), dst_node_id=7, message_type=MessageType.QUERY)
    reply = messages.unpack_reply(app(asked, context(policy)).content)
    assert reply.config == {records.SITE: "north", records.STATUS: records.DONE, records.UNIT: "patient"}
    assert reply.metrics == {records.PATIENTS: 30.0, records.LABELLED: 30.0}
    assert reply.arrays == {}


def test_a_round_within_the_policy_is_done_and_reserved(policy: SitePolicy, settings: Settings) -> None:
    reply = ask(policy, settings)
    assert reply.config[records.STATUS] == records.DONE
    assert reply.metrics == {records.WEIGHT: 30.0}
    events = [json.loads(line)["event"] for line in (Path(policy.folder) / "ledger.jsonl").read_text().splitlines()]
    assert events == ["open", "reserve", "complete"]


def test_the_same_request_gets_the_same_bytes_free(policy: SitePolicy, settings: Settings) -> None:
    first = ask(policy, settings)
    size = (Path(policy.folder) / "ledger.jsonl").stat().st_size
    again = ask(policy, settings)
    assert all(np.array_equal(first.arrays[key], again.arrays[key]) for key in first.arrays)
    assert (Path(policy.folder) / "ledger.jsonl").stat().st_size == size


def test_a_crash_after_the_reservation_is_spent_and_asking_again_spends_again(
    policy: SitePolicy, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object, **__: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patched:
        patched.setattr(local_round, "run", crash)
        with pytest.raises(SystemExit):
            ask(policy, settings)
    assert ask(policy, settings).config[records.STATUS] == records.DONE
    events = [json.loads(line)["event"] for line in (Path(policy.folder) / "ledger.jsonl").read_text().splitlines()]
    assert events == ["open", "reserve", "reserve", "complete"]


def test_a_real_sites_noise_is_not_seeded(policy: SitePolicy, settings: Settings, tmp_path: Path) -> None:
    first = ask(policy, settings)
    other = ask(replace(policy, folder=str(tmp_path / "other" / "state")), settings)
    assert any(not np.array_equal(first.arrays[key], other.arrays[key]) for key in first.arrays)


@pytest.mark.parametrize(
    "words",
    ["privacy=none", "privacy.clip_norm=1e9", "privacy.sample_rate=1.0", "rounds=1000000", "privacy.delta=0.01"],
)
def test_a_greedy_server_is_refused_and_nothing_is_spent(policy: SitePolicy, words: str) -> None:
    study = ["study=demo", "smoke=true", "data.size=[16,16]", "backend=deployment", words]
    reply = ask(policy, compose(study), noise=1.0)
    assert reply.config == {records.SITE: "north", records.STATUS: records.REFUSED_POLICY}
    assert (reply.metrics, reply.arrays, spent(policy)) == ({}, {}, False)


@pytest.mark.parametrize("noise", [1e-9, 0.05])
def test_a_server_that_asks_for_no_noise_is_refused(policy: SitePolicy, settings: Settings, noise: float) -> None:
    reply = ask(policy, settings, noise=noise)
    assert reply.config[records.STATUS] == records.REFUSED_POLICY
    assert not spent(policy)


def test_the_site_reads_its_own_data_whatever_the_server_names(policy: SitePolicy, settings: Settings) -> None:
    assert settings.data.root == "/server/says/so"
    assert ask(policy, settings).config[records.STATUS] == records.DONE


def test_a_policy_must_name_the_sites_own_data(policy: SitePolicy) -> None:
    with pytest.raises(SettingsError, match="data_root"):
        replace(policy, data_root="")


def test_more_patients_than_declared_change_nothing_that_leaves(
    policy: SitePolicy, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    reply = ask(replace(policy, patients_declared=10), settings)
    assert (reply.config[records.STATUS], reply.metrics) == (records.DONE, {records.WEIGHT: 10.0})
    assert "raise the declared figure" in caplog.text


def test_a_second_run_beyond_the_lifetime_budget_is_refused(policy: SitePolicy, settings: Settings) -> None:
    assert ask(policy, settings).config[records.STATUS] == records.DONE
    assert ask(policy, settings, run="run-2").config[records.STATUS] == records.REFUSED_BUDGET


def test_data_that_cannot_be_read_yield_a_reply_of_pure_noise(
    policy: SitePolicy, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    reply = ask(replace(policy, data_root="/no/such/folder/of/patient-17"), settings)
    assert reply.config == {records.SITE: "north", records.STATUS: records.DONE}
    assert reply.metrics == {records.WEIGHT: 30.0}
    assert "the reply is noise" in caplog.text
    assert spent(policy)


def trained_on(policy: SitePolicy, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The units that reach a round, by ids, for what a server may ask."""
    seen: list[str] = []

    def look(asked: object, arrays: dict[str, np.ndarray], cases: CaseSet, *, stream: object) -> LocalResult:
        seen.extend(cases.by_patient())
        return LocalResult(arrays, None)

    monkeypatch.setattr(local_round, "run", look)
    assert ask(policy, settings).config[records.STATUS] == records.DONE
    return seen


@pytest.mark.parametrize(
    "word",
    ["data.min_patients=24", "data.min_patients=1000", "data.test_share=0.9", "seed=7", "data.max_patients=1",
     "data.classes=[]", "data.partition=even", "data.columns.patient=label"],
)  # fmt: skip
def test_nothing_a_server_asks_decides_which_patients_take_part(
    policy: SitePolicy, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    study = ["study=demo", "smoke=true", "data.size=[16,16]", "backend=deployment", word]
    assert len(trained_on(policy, compose(study), monkeypatch)) == PATIENTS


def copied(films: Path, folder: Path) -> Path:
    shutil.copytree(films, folder)
    return folder


def test_a_patient_in_two_folders_of_a_site_is_one_unit(
    policy: SitePolicy, settings: Settings, films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for year in ("2023", "2024"):
        copied(films, tmp_path / "films" / year)
    several = replace(policy, data_root=str(tmp_path / "films"))
    assert len(trained_on(several, settings, monkeypatch)) == PATIENTS


def test_a_case_without_a_patient_is_left_out_and_moves_no_other(
    policy: SitePolicy, settings: Settings, films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = copied(films, tmp_path / "films") / "labels.csv"
    lines = table.read_text().splitlines()
    lines[1] = lines[1].rpartition(",")[0] + ","
    table.write_text("\n".join(lines) + "\n")
    assert len(trained_on(replace(policy, data_root=str(tmp_path / "films")), settings, monkeypatch)) == PATIENTS


def test_a_patient_whose_label_name_is_odd_moves_no_other(
    policy: SitePolicy, settings: Settings, films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = copied(films, tmp_path / "films") / "labels.csv"
    lines = table.read_text().splitlines()
    cells = lines[1].split(",")
    lines[1] = ",".join([cells[0], cells[1], "nodule", *cells[3:]])
    table.write_text("\n".join(lines) + "\n")
    assert len(trained_on(replace(policy, data_root=str(tmp_path / "films")), settings, monkeypatch)) == PATIENTS


def test_a_round_that_fails_on_its_data_yields_noise_and_tells_nothing(
    policy: SitePolicy, settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain = local_round.run

    def broken(asked: LocalRound, arrays: dict[str, np.ndarray], cases: CaseSet, *, stream: Stream) -> LocalResult:
        if len(cases):
            raise ValueError("patient 17 has a rare disease")
        return plain(asked, arrays, cases, stream=stream)

    monkeypatch.setattr(local_round, "run", broken)
    reply = ask(policy, settings)
    assert reply.config == {records.SITE: "north", records.STATUS: records.DONE}
    assert "the reply is noise" in caplog.text


def test_weights_that_are_not_finite_are_refused(policy: SitePolicy, settings: Settings) -> None:
    reply = ask(policy, settings, fill=float("nan"))
    assert reply.config[records.STATUS] == records.REFUSED_POLICY
    assert not spent(policy)


def test_a_huge_network_is_refused_before_it_is_built(policy: SitePolicy) -> None:
    study = ["study=demo", "data.size=[16,16]", "backend=deployment", "generator.channels=[65536,65536]"]
    reply = ask(policy, compose(study), noise=1.0, arrays={"w": np.zeros(1, np.float32)})
    assert reply.config[records.STATUS] == records.REFUSED_POLICY
    assert not spent(policy)


def test_a_supernode_with_a_partition_number_is_no_simulation(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FEDMEDGEN_SIMULATION", raising=False)
    config = ConfigRecord({records.SETTINGS: json.dumps(settings.to_mapping())})
    asked = Message(RecordDict({records.CONFIG: config}), dst_node_id=7, message_type=MessageType.QUERY)
    reply = app(asked, Context(1, 7, {"partition-id": 0, "num-partitions": 3}, RecordDict(), {}))
    assert messages.unpack_reply(reply.content).config[records.STATUS] == records.REFUSED_POLICY


def test_a_fault_of_the_program_leaves_as_a_code_without_its_text(
    policy: SitePolicy, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ValueError("patient 17 has a rare disease")

    monkeypatch.setattr(local_round, "run", broken)
    assert ask(policy, settings).config == {records.SITE: "north", records.STATUS: records.FAULT}


def test_a_node_that_is_neither_simulated_nor_configured_refuses(settings: Settings) -> None:
    config = ConfigRecord({records.SETTINGS: json.dumps(settings.to_mapping())})
    asked = Message(RecordDict({records.CONFIG: config}), dst_node_id=7, message_type=MessageType.QUERY)
    reply = app(asked, Context(1, 7, {}, RecordDict(), {}))
    assert messages.unpack_reply(reply.content).config[records.STATUS] == records.REFUSED_POLICY
