"""A real site, opened from its own policy file: what it grants, what it refuses, and what leaves it."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedmedgen.composition import compose
from fedmedgen.data import phantoms
from fedmedgen.data.cases import CaseSet
from fedmedgen.emission.writing import write_set
from fedmedgen.errors import SettingsError
from fedmedgen.federation import local_round, messages, plan, records
from fedmedgen.federation.egress import Reply
from fedmedgen.federation.policy import SitePolicy
from fedmedgen.settings import Settings
from sites.app import app

PATIENTS = 24


@pytest.fixture(autouse=True)
def identity() -> Iterator[None]:
    before = (TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id)
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    yield
    TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id = before


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
    noise = changes.pop("noise", None) or plan.noise_multiplier(settings)
    config = messages.request_config("run-1", "generator", settings, float(str(noise)))
    config[records.SERVER_ROUND] = 1
    for key, value in changes.items():
        config[key] = value  # type: ignore[assignment]
    arrays = local_round.trainable_arrays(local_round.build_model(settings, "generator"))
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


@pytest.mark.parametrize("root", ["/no/such/folder/of/patient-17", "unnamed"])
def test_a_fault_of_the_data_yields_a_reply_of_pure_noise(
    policy: SitePolicy, settings: Settings, films: Path, tmp_path: Path, root: str, caplog: pytest.LogCaptureFixture
) -> None:
    if root == "unnamed":  # the patients' ids are missing, so the unit would be the image
        root = str(tmp_path / "films")
        shutil.copytree(films, root)
        table = Path(root) / "labels.csv"
        table.write_text("\n".join(line.rpartition(",")[0] for line in table.read_text().splitlines()) + "\n")
    reply = ask(replace(policy, data_root=root), settings)
    assert reply.config == {records.SITE: "north", records.STATUS: records.DONE}
    assert reply.metrics == {records.WEIGHT: 30.0}
    assert "the reply is noise" in caplog.text
    assert spent(policy)


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
