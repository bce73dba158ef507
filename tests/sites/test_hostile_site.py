"""A site whose own program would let something out, or breaks: what leaves all the same is a code."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict

from fedmedgen.errors import DataError, LedgerError
from fedmedgen.federation import egress, local_round, messages, records
from fedmedgen.federation.egress import Reply
from fedmedgen.federation.policy import SitePolicy
from fedmedgen.privacy.ledger import Ledger
from sites import opening, site
from sites.app import app
from sites.replies import ReplyStore
from sites.site import Site

SECRET = "patient 17 has a rare disease"
PATIENTS = 24.0

Spoil = Callable[[Reply], Reply]


def words(key: str, value: Any) -> Spoil:
    return lambda reply: replace(reply, config={**reply.config, key: value})


def figures(key: str, value: Any) -> Spoil:
    return lambda reply: replace(reply, metrics={**reply.metrics, key: value})


def arrays(change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> Spoil:
    return lambda reply: replace(reply, arrays=change(dict(reply.arrays)))


REPLIES = {
    "the loss": figures(records.LOSS, 0.31),
    "an exact count as the weight": figures(records.WEIGHT, PATIENTS),
    "an exact count beside the weight": figures(records.PATIENTS, PATIENTS),
    "an exact count of masks": figures(records.LABELLED, PATIENTS),
    "the weight as a numpy number": figures(records.WEIGHT, np.float64(30)),
    "counts by label": figures("label-counts", 7.0),
    "a range of a feature": figures("max-intensity", 0.93),
    "a list of losses": figures(records.WEIGHT, [30.0, 0.31]),
    "a status in free words": words(records.STATUS, SECRET),
    "a status and more": words(records.STATUS, f"{records.DONE} {SECRET}"),
    "a note": words("note", SECRET),
    "another name": words(records.SITE, f"north ({SECRET})"),
    "another unit": words(records.UNIT, "image"),
    "a metric among words": words(records.LOSS, "0.31"),
    "a word among metrics": figures(records.STATUS, 1.0),
    "a batch of images": arrays(lambda found: {**found, "images": np.zeros((8, 1, 16, 16), np.float32)}),
    "images under a known name": arrays(lambda found: {key: np.zeros((8, 1, 16, 16), np.float32) for key in found}),
    "double precision": arrays(lambda found: {key: value.astype(np.float64) for key, value in found.items()}),
    "counts of whole numbers": arrays(lambda found: {key: value.astype(np.int64) for key, value in found.items()}),
    "one array fewer": arrays(lambda found: dict(list(found.items())[1:])),
    "another name of an array": arrays(lambda found: {f"{key}.grad": value for key, value in found.items()}),
    "one dimension more": arrays(lambda found: {key: value[None] for key, value in found.items()}),
}

RECORDS = {
    "more words": ("more", ConfigRecord({"note": SECRET})),
    "more figures": ("raw", MetricRecord({records.WEIGHT: 30.0})),
    "arrays elsewhere": ("batch", ArrayRecord([np.zeros((8, 1, 16, 16), np.float32)])),
    "arrays as metrics": (records.METRICS, ArrayRecord([np.zeros(1, np.float32)])),
    "words of another key": (records.CONFIG, ConfigRecord({records.STATUS: records.DONE, "note": SECRET})),
    "figures of another key": (records.METRICS, MetricRecord({"age": 61.0})),
    "bytes": (records.CONFIG, ConfigRecord({records.STATUS: SECRET.encode()})),
}

BROKEN = {
    "the look at the request": (messages, "check_asked"),
    "opening": (opening, "own_cases"),
    "the policy file": (SitePolicy, "read"),
    "unpacking": (messages, "unpack_request"),
    "settings": (messages, "unpack_settings"),
    "the policy": (site, "check_request"),
    "weights": (site, "check_arrays"),
    "the network": (local_round, "build_model"),
    "the plan": (site, "check_plan"),
    "the self-check": (site, "check_once"),
    "the key": (site, "load_key"),
    "the ledger's plan": (Ledger, "open_plan"),
    "the ledger's spend": (Ledger, "reserve"),
    "the ledger's end": (Ledger, "complete"),
    "looking for a reply": (ReplyStore, "paid"),
    "storing a reply": (ReplyStore, "store"),
    "the round": (local_round, "run"),
    "egress": (egress, "check"),
    "egress of arrays": (egress, "check_arrays"),
    "packing": (messages, "pack_reply"),
    "packing arrays": (messages, "pack_arrays"),
    "the last look": (messages, "check_answer"),
}


def assert_a_code_alone(message: Message) -> None:
    """Nothing but a name and a word from the fixed list, and no trace of what broke."""
    assert not message.has_error()
    assert {name: dict(record) for name, record in message.content.items()} == {
        records.CONFIG: {
            records.SITE: message.content[records.CONFIG][records.SITE],
            records.STATUS: message.content[records.CONFIG][records.STATUS],
        }
    }
    assert message.content[records.CONFIG][records.SITE] in ("north", "")
    assert message.content[records.CONFIG][records.STATUS] in set(records.STATUSES) - {records.DONE, records.IDLE}


@pytest.mark.parametrize("spoil", REPLIES.values(), ids=REPLIES)
def test_what_a_sites_own_program_must_not_send_is_stopped_at_the_door(
    server: Any, monkeypatch: pytest.MonkeyPatch, spoil: Spoil
) -> None:
    plain = Site._round
    monkeypatch.setattr(Site, "_round", lambda *words: spoil(plain(*words)))
    message = server.send(server.request())
    assert_a_code_alone(message)
    assert message.content[records.CONFIG][records.STATUS] == records.FAULT
    assert server.events == ["open", "reserve"]  # spent, and no reply that could be asked for again
    assert not list((Path(server.policy.folder)).glob("replies/[!.]*"))


@pytest.mark.parametrize(("name", "record"), RECORDS.values(), ids=RECORDS)
def test_a_record_slipped_in_after_the_door_is_stopped_too(
    server: Any, monkeypatch: pytest.MonkeyPatch, name: str, record: Any
) -> None:
    plain = messages.pack_reply

    def packed(reply: Any) -> RecordDict:
        content = plain(reply)
        content[name] = record
        return content

    monkeypatch.setattr(messages, "pack_reply", packed)
    message = server.send(server.request())
    assert_a_code_alone(message)
    assert message.content[records.CONFIG][records.STATUS] == records.FAULT


@pytest.mark.parametrize(
    ("owner", "name", "kind"),
    [
        *[(*place, ValueError) for place in BROKEN.values()],
        *[
            (local_round, "run", kind)
            for kind in (MemoryError, RecursionError, OSError, KeyError, DataError, LedgerError)
        ],
    ],
)
def test_whatever_breaks_leaves_as_a_code(
    server: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    owner: Any,
    name: str,
    kind: type[Exception],
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise kind(SECRET)

    content = server.request()
    server.create()
    monkeypatch.setattr(owner, name, broken)
    if name == "own_cases":
        monkeypatch.setattr(opening, "partial", broken)
    assert_a_code_alone(server.send(content))
    assert SECRET in caplog.text


def test_an_error_that_has_no_words_leaves_as_a_code_too(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class MuteError(Exception):
        def __str__(self) -> str:
            raise ValueError(SECRET)

    def broken(*_: object, **__: object) -> None:
        raise MuteError

    monkeypatch.setattr(local_round, "run", broken)
    monkeypatch.setattr(logging, "raiseExceptions", False)
    assert_a_code_alone(server.send(server.request()))


@pytest.mark.parametrize(
    "content", [f"site: [{SECRET}", f"{SECRET}: 1", f"\t{SECRET}", "", b"\xff\xfe\x00patient 17".decode("latin1")]
)
def test_a_policy_file_that_cannot_be_read_leaves_as_a_code(
    server: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str
) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(content, encoding="latin1")
    request = Message(server.request(), dst_node_id=7, message_type="train")
    message = app(request, Context(1, 7, {"policy": str(path)}, RecordDict(), {}))
    assert_a_code_alone(message)
    assert message.content[records.CONFIG][records.STATUS] == records.REFUSED_POLICY
    assert "was not carried out" in caplog.text


def test_a_message_without_content_leaves_as_a_code(server: Any) -> None:
    from flwr.app import Error

    asked = Message(RecordDict(), dst_node_id=7, message_type="train")
    assert_a_code_alone(app(asked, Context(1, 7, {}, RecordDict(), {})))
    faulty = Message(Error(code=0, reason=SECRET), reply_to=asked)
    assert_a_code_alone(app(faulty, Context(1, 7, {}, RecordDict(), {})))


def test_nothing_of_a_round_stays_in_flowers_context(server: Any) -> None:
    """Flower hands the context back to the node with each reply."""
    context = Context(1, 7, {"policy": str(server.create().policy_file)}, RecordDict(), {"a": 1})
    answer = app(Message(server.request(), dst_node_id=7, message_type="train"), context)
    assert answer.content[records.CONFIG][records.STATUS] == records.DONE
    assert (dict(context.state), context.run_config, list(context.node_config)) == ({}, {"a": 1}, ["policy"])


def test_a_replayed_reply_goes_through_the_door_as_well(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = server.ask()
    said = replace(stored, metrics={**stored.metrics, records.LOSS: 0.31})
    monkeypatch.setattr(ReplyStore, "paid", lambda *_: said)
    assert server.ask().metrics == stored.metrics
    assert list(server.events) == ["open", "reserve", "complete", "reserve", "complete"]
