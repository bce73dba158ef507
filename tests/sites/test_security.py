"""The site's security log: who asked for what, what was refused and why, what was sent; and nothing of a patient."""

import json
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, MessageType, RecordDict

from fedmedgen.deployment import security_log
from fedmedgen.federation import messages, packing, records
from sites import app as site_app
from sites.security import SecurityLog


def noted(server: Any) -> list[dict[str, Any]]:
    file = Path(server.policy.folder) / "security.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def test_a_round_is_asked_and_sent_with_its_size_and_hash(server: Any) -> None:
    answer = server.send(server.request())
    asked, sent = noted(server)
    assert (asked["event"], asked["what"], asked["run"], asked["stage"]) == ("asked", "train", "run-1", "generator")
    assert asked["bundle"] == "0" * 64
    arrays = answer.content[records.ARRAYS]
    assert sent["event"] == "sent"
    assert sent["arrays"] == len(packing.unpacked(arrays)) > 1
    assert sent["bytes"] == sum(len(array.data) for array in arrays.values())
    assert sent["words"] == {"site": "north", "status": "done", "num-examples": 30.0}
    ledger = [json.loads(line) for line in server.policy.ledger_path.read_text().splitlines()]
    assert [sent["request"]] == [line["request"] for line in ledger if line["event"] == "reserve"]


def test_the_hash_is_of_what_was_sent(server: Any) -> None:
    content = server.request()
    server.send(content)
    server.send(content)  # the stored reply: the same bytes
    server.send(server.request(server_round=2))
    hashes = [line["sha256"] for line in noted(server) if line["event"] == "sent"]
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize("words", [{"noise_multiplier": 1e-3}, {"stage": "none"}])
def test_what_is_refused_is_written_with_its_reason_which_stays(server: Any, words: dict[str, Any]) -> None:
    answer = server.send(server.request(**words))
    events = [line["event"] for line in noted(server)]
    assert events == ["asked", "refused", "sent"]
    refused = noted(server)[1]
    assert "PolicyError" in refused["why"]
    assert len(messages.unpack_reply(answer.content).config) == 2  # the site and a code: no reason


def test_a_message_that_is_no_request_is_written_too(server: Any) -> None:
    server.send(RecordDict({"other": ConfigRecord({"a": 1})}), MessageType.TRAIN)
    *_, sent = noted(server)
    assert [line["event"] for line in noted(server)] == ["asked", "refused", "sent"]
    assert sent["words"] == {"site": "", "status": "refused-policy"}


def test_a_disk_that_fills_up_in_a_round_lets_one_word_leave_and_nothing_else(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The round is done and paid for; its reply may not leave unwritten."""
    plain = security_log.note

    def full(folder: Path, event: str, **words: object) -> None:
        if event != "asked":
            raise OSError("no space left on device")
        plain(folder, event, **words)

    monkeypatch.setattr(security_log, "note", full)
    reply = server.send(server.request()).content
    assert list(reply) == [records.CONFIG]
    assert dict(reply[records.CONFIG]) == {records.SITE: "", records.STATUS: records.FAULT}
    assert server.spent


def test_a_long_name_fills_no_disk(server: Any) -> None:
    server.send(server.request(run="x" * 100_000))
    assert len(noted(server)[0]["run"]) == 200


def test_nothing_is_done_where_nothing_can_be_written_down(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server.create()

    def full(self: SecurityLog, message: Message) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(SecurityLog, "asked", full)
    reply = messages.unpack_reply(server.deliver(server.request()).content)
    assert (reply.config[records.STATUS], reply.arrays) == (records.FAULT, {})
    assert not server.spent
    assert site_app.code_of(OSError()) == records.FAULT
