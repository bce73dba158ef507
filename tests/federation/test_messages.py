"""Requests and replies survive Flower's records; what decides a reply decides its digest."""

from dataclasses import replace

import numpy as np
import pytest
from flwr.app import ConfigRecord, MetricRecord, RecordDict

from fedmedgen.composition import compose
from fedmedgen.errors import EgressError, PolicyError, ReplyError
from fedmedgen.federation import messages, records
from fedmedgen.federation.egress import Checked, Reply
from fedmedgen.federation.messages import Request


@pytest.fixture
def request_() -> Request:
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(1, np.float32)}
    return Request("run-1", "generator", 2, compose(["study=demo"]), 1.25, 0.0, arrays)


def test_a_request_survives_the_wire(request_: Request) -> None:
    config = messages.request_config(request_.run, request_.stage, request_.settings, request_.noise_multiplier)
    config[records.SERVER_ROUND] = request_.round
    content = RecordDict({records.CONFIG: config, records.ARRAYS: messages.pack_arrays(request_.arrays)})
    again = messages.unpack_request(content)
    assert again.digest == request_.digest
    assert again.settings == request_.settings


def test_the_digest_changes_with_whatever_decides_the_reply(request_: Request) -> None:
    other = {"a": request_.arrays["a"] + 1, "b": request_.arrays["b"]}
    changed = [
        replace(request_, run="run-2"),
        replace(request_, round=3),
        replace(request_, noise_multiplier=1.2),
        replace(request_, statistics_noise=1.2),
        replace(request_, arrays=other),
        replace(request_, settings=compose(["study=demo", "seed=1"])),
    ]
    assert len({item.digest for item in [*changed, request_]}) == 7


def test_the_digest_forgets_what_carries_the_study(request_: Request) -> None:
    moved = compose(["study=demo", "backend=flower", "out=elsewhere"])
    assert replace(request_, settings=moved).digest == request_.digest


def test_a_reply_survives_the_wire() -> None:
    reply = Reply(
        config={records.SITE: "north", records.STATUS: records.DONE},
        metrics={records.WEIGHT: 7.0},
        arrays={"a": np.ones((2, 2), np.float32)},
    )
    again = messages.unpack_reply(messages.pack_reply(Checked(reply)))
    assert (again.config, again.metrics) == (reply.config, reply.metrics)
    np.testing.assert_array_equal(again.arrays["a"], reply.arrays["a"])


def test_a_reply_without_a_known_status_is_refused() -> None:
    with pytest.raises(ReplyError, match="known status"):
        messages.unpack_reply(RecordDict({records.CONFIG: ConfigRecord({records.STATUS: "fine"})}))


def test_the_size_counts_arrays_words_and_numbers() -> None:
    content = RecordDict(
        {
            records.ARRAYS: messages.pack_arrays({"a": np.zeros(100, np.float32)}),
            records.CONFIG: ConfigRecord({"ab": "cde"}),
            records.METRICS: MetricRecord({"x": 1.0}),
        }
    )
    assert 400 + 5 + 8 <= messages.size_of(content) < 700


def test_what_a_simulation_may_set_is_not_sent_to_real_sites() -> None:
    words = ["study=demo", "data.root=/the/servers/own", "fault.site=north", "ledger.root=/state", "out=/run"]
    sent = messages.pack_settings(compose([*words, "backend=deployment"]))
    assert not [word for word in ("servers", "north", "state", "/run") if word in sent]
    assert "servers" in messages.pack_settings(compose(words))


def test_every_key_of_a_request_is_listed_and_no_other_may_come(request_: Request) -> None:
    config = messages.request_config(request_.run, request_.stage, request_.settings, request_.noise_multiplier)
    config[records.SERVER_ROUND] = 1
    content = RecordDict({records.CONFIG: config, records.ARRAYS: messages.pack_arrays(request_.arrays)})
    messages.check_asked(content, "train")
    config["seed"] = 7
    with pytest.raises(PolicyError, match="the key 'seed'"):
        messages.check_asked(content, "train")


@pytest.mark.parametrize(
    ("name", "record", "words"),
    [
        ("config", ConfigRecord({"note": "patient 7"}), "the key 'note'"),
        ("config", ConfigRecord({"status": ["done", "patient 7"]}), "a list under 'status'"),
        ("more", ConfigRecord({"status": "done"}), "the record 'more'"),
        ("metrics", MetricRecord({"num-examples": [1.0, 2.0]}), "a list under 'num-examples'"),
        ("metrics", MetricRecord({"age": 61.0}), "the key 'age'"),
        ("more", MetricRecord({"loss": 1.0}), "the record 'more'"),
        ("config", MetricRecord({"loss": 1.0}), "the record 'config'"),
        ("batch", messages.pack_arrays({"a": np.zeros(1, np.float32)}), "arrays under 'batch'"),
        ("metrics", messages.pack_arrays({"a": np.zeros(1, np.float32)}), "arrays under 'metrics'"),
    ],
)
def test_a_record_or_key_that_may_not_leave_is_named(name: str, record: object, words: str) -> None:
    with pytest.raises(EgressError, match=words):
        messages.check_answer(RecordDict({name: record}))  # type: ignore[dict-item]
