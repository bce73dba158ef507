"""A real site, opened from its own policy file: what it grants, and what it refuses."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict

from fedmedgen.deployment.guard import BUNDLE
from fedmedgen.errors import SettingsError
from fedmedgen.federation import local_round, messages, records
from fedmedgen.federation.egress import Reply
from fedmedgen.federation.policy import SitePolicy
from fedmedgen.privacy import contractions, kernels
from fedmedgen.settings import Settings
from sites.app import app

NODE = 7


def question(settings: Settings) -> RecordDict:
    return RecordDict({records.CONFIG: ConfigRecord({records.SETTINGS: messages.pack_settings(settings)})})


def asked_at(settings: Settings, **node_config: Any) -> Reply:
    """Ask a node who it is."""
    asked = Message(question(settings), dst_node_id=NODE, message_type=MessageType.QUERY)
    return messages.unpack_reply(app(asked, Context(1, NODE, node_config, RecordDict(), {})).content)


def test_a_site_says_its_name_and_public_counts_and_nothing_else(server: Any) -> None:
    reply = messages.unpack_reply(server.send(question(server.settings), MessageType.QUERY).content)
    assert reply.config == {
        records.SITE: "north",
        records.STATUS: records.DONE,
        records.UNIT: "patient",
        records.SIMULATION: "no",
    }
    assert reply.metrics == {records.PATIENTS: 30.0, records.LABELLED: 20.0}
    assert reply.arrays == {}


def test_a_round_within_the_policy_is_done_and_reserved(server: Any) -> None:
    reply = server.ask()
    assert (reply.config[records.STATUS], reply.metrics) == (records.DONE, {records.WEIGHT: 30.0})
    assert server.events == ["open", "reserve", "complete"]


@pytest.mark.parametrize(("stage", "declared"), [("generator", 30.0), ("segmenter", 20.0)])
@pytest.mark.parametrize("fewer", [0, 9])
def test_the_weight_is_the_declared_figure_of_the_stage_however_many_patients_are_found(
    server: Any, stage: str, declared: float, fewer: int
) -> None:
    changes = {"patients_declared": int(30 - fewer), "labelled_declared": int(20 - fewer)}
    reply = server.at(**changes).ask(stage=stage)
    assert (reply.config[records.STATUS], reply.metrics) == (records.DONE, {records.WEIGHT: declared - fewer})


def test_more_patients_than_declared_change_nothing_that_leaves(server: Any, caplog: pytest.LogCaptureFixture) -> None:
    reply = server.at(patients_declared=10).ask()
    assert (reply.config[records.STATUS], reply.metrics) == (records.DONE, {records.WEIGHT: 10.0})
    assert "raise the declared figure" in caplog.text


def test_the_same_request_gets_the_same_bytes_free(server: Any) -> None:
    first, events = server.ask(), server.events
    again = server.ask()
    assert all(np.array_equal(first.arrays[key], again.arrays[key]) for key in first.arrays)
    assert server.events == events


def test_a_stored_reply_that_may_no_longer_leave_stays(server: Any) -> None:
    """Under another declared figure it is another plan, for which nothing is left."""
    assert server.ask().config[records.STATUS] == records.DONE
    refused = Reply({records.SITE: "north", records.STATUS: records.REFUSED_BUDGET})
    assert server.at(patients_declared=40).ask() == refused


def test_a_crash_after_the_reservation_is_spent_and_asking_again_spends_again(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object, **__: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patched:
        patched.setattr(local_round, "run", crash)
        with pytest.raises(SystemExit):
            server.ask()
    assert server.ask().config[records.STATUS] == records.DONE
    assert server.events == ["open", "reserve", "reserve", "complete"]


def test_a_real_sites_noise_is_not_seeded(server: Any, tmp_path: Path) -> None:
    first = server.ask()
    other = server.at(folder=str(tmp_path / "other" / "state")).ask()
    assert any(not np.array_equal(first.arrays[key], other.arrays[key]) for key in first.arrays)


def test_a_site_whose_own_file_says_simulation_tells_so_and_is_seeded(server: Any, tmp_path: Path) -> None:
    seeded = server.at(simulation=True)
    said = messages.unpack_reply(seeded.send(question(server.settings), MessageType.QUERY).content)
    assert said.config[records.SIMULATION] == "yes"
    first = seeded.ask()
    other = seeded.at(folder=str(tmp_path / "other" / "state")).ask()
    assert all(np.array_equal(first.arrays[key], other.arrays[key]) for key in first.arrays)


def test_a_policy_must_name_the_sites_own_data_and_a_real_one_cannot_forgo_privacy(policy: SitePolicy) -> None:
    for changes, words in (({"data_root": ""}, "data_root"), ({"no_privacy_allowed": True}, "no_privacy_allowed")):
        with pytest.raises(SettingsError, match=words):
            SitePolicy(**{**vars(policy), **changes})


def test_kernels_are_kept_where_the_sites_own_file_says_whatever_a_study_asks(server: Any, tmp_path: Path) -> None:
    asking = server.asking("privacy.engine=fused", f"runtime.kernel_cache={tmp_path / 'theirs.json'}")
    try:
        assert asking.at(kernel_cache=str(tmp_path / "ours.json")).ask().config[records.STATUS] == records.DONE
        assert vars(kernels.current())["path"] == tmp_path / "ours.json"
        assert asking.at(folder=str(tmp_path / "other" / "state")).ask().config[records.STATUS] == records.DONE
        assert kernels.current() is contractions.by_rule
    finally:
        kernels.keep_in("")


def test_a_supernode_with_a_partition_number_is_no_simulation(
    identity: None, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FEDMEDGEN_SIMULATION", raising=False)
    reply = asked_at(settings, **{"partition-id": 0, "num-partitions": 3})
    assert reply == Reply({records.SITE: "", records.STATUS: records.REFUSED_POLICY})


def test_a_node_that_is_neither_simulated_nor_configured_refuses(identity: None, settings: Settings) -> None:
    assert asked_at(settings) == Reply({records.SITE: "", records.STATUS: records.REFUSED_POLICY})


@pytest.mark.parametrize("checked", [None, "1" * 64, ""])
def test_a_site_that_its_guard_did_not_start_refuses_whatever_is_asked(
    server: Any, monkeypatch: pytest.MonkeyPatch, checked: str | None
) -> None:
    if checked is None:
        monkeypatch.delenv(BUNDLE)
    else:
        monkeypatch.setenv(BUNDLE, checked)
    reply = server.ask()
    assert (reply.config[records.STATUS], reply.arrays) == (records.REFUSED_POLICY, {})
    assert not server.spent
