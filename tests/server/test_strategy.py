"""The strategy with hand-made replies: what it rejects, how it weighs, when it gives up."""

import numpy as np
import pytest
from flwr.app import ConfigRecord, Error, Message, MetricRecord, RecordDict

from fedmedgen.errors import FederationError
from fedmedgen.federation import messages, records
from fedmedgen.settings import FederationSettings
from server.strategy import GuardedStrategy, Member, flower_strategy

MEMBERS = [
    Member(12, "b", "patient", 100, 100),
    Member(11, "a", "patient", 300, 300),
    Member(13, "c", "patient", 100, 0),
]
START = {"w": np.zeros(2, np.float32)}


pytestmark = pytest.mark.usefixtures("identity")


def strategy(**settings: object) -> GuardedStrategy:
    federation = FederationSettings(**{"max_update_norm": 100.0, **settings})  # type: ignore[arg-type]
    return GuardedStrategy(flower_strategy(federation, len(MEMBERS)), MEMBERS, federation)


def ask(guarded: GuardedStrategy) -> dict[str, Message]:
    sent = list(guarded.configure_train(1, messages.as_flowers(START), ConfigRecord(), None))  # type: ignore[arg-type]
    return {guarded.members[message.metadata.dst_node_id].site: message for message in sent}


def reply(asked: Message, site: str, values: list[float], weight: float, **config: str) -> Message:
    content = RecordDict(
        {
            records.CONFIG: ConfigRecord({records.SITE: site, records.STATUS: records.DONE, **config}),
            records.METRICS: MetricRecord({records.WEIGHT: weight}),
            records.ARRAYS: messages.pack_arrays({"w": np.array(values, np.float32)}),
        }
    )
    return Message(content, reply_to=asked)


def test_messages_go_to_the_sites_in_the_order_of_their_names() -> None:
    assert list(ask(strategy())) == ["a", "b", "c"]


def test_replies_are_weighed_by_declared_patients_whatever_their_order() -> None:
    guarded = strategy()
    asked = ask(guarded)
    replies = [
        reply(asked["c"], "c", [5, 0], 100),
        reply(asked["a"], "a", [1, 0], 300),
        reply(asked["b"], "b", [1, 5], 100),
    ]
    combined, _ = guarded.aggregate_train(1, replies)
    assert combined is not None
    np.testing.assert_allclose(messages.unpack_arrays(combined)["w"], [(300 + 100 + 500) / 500, 500 / 500], rtol=1e-6)


@pytest.mark.parametrize(
    ("values", "weight", "said", "reason"),
    [
        ([np.nan, 0], 100, "b", "finite"),
        ([np.inf, 0], 100, "b", "finite"),
        ([1e6, 0], 100, "b", "norm"),
        ([1, 2, 3], 100, "b", "shape"),
        ([1, 2], 1e9, "b", "weight"),
        ([1, 2], 100, "a", "replied as 'a'"),
    ],
)
def test_an_unusable_reply_is_rejected_and_the_round_goes_on(
    values: list[float], weight: float, said: str, reason: str
) -> None:
    guarded = strategy()
    asked = ask(guarded)
    good = [reply(asked["a"], "a", [1, 1], 300), reply(asked["c"], "c", [1, 1], 100)]
    combined, _ = guarded.aggregate_train(1, [*good, reply(asked["b"], said, values, weight)])
    assert combined is not None
    np.testing.assert_allclose(messages.unpack_arrays(combined)["w"], [1, 1])
    outcomes = {outcome.site: outcome for outcome in guarded.outcomes}
    assert (outcomes["b"].status, reason in outcomes["b"].reason) == ("rejected", True)
    assert outcomes["a"].update_norm == pytest.approx(np.sqrt(2))


def test_errors_silence_and_refusals_are_told_apart() -> None:
    guarded = strategy(min_sites=1)
    asked = ask(guarded)
    refused = RecordDict({records.CONFIG: ConfigRecord({records.SITE: "b", records.STATUS: records.REFUSED_BUDGET})})
    guarded.aggregate_train(
        1,
        [reply(asked["a"], "a", [1, 1], 300), Message(refused, reply_to=asked["b"])],
    )
    assert {o.site: o.status for o in guarded.outcomes} == {"a": "done", "b": "refused-budget", "c": "no-reply"}
    asked = ask(guarded)
    crash = Message(Error(8, "patient 17's file"), reply_to=asked["b"])
    guarded.aggregate_train(1, [reply(asked["a"], "a", [1, 1], 300), crash])
    assert {o.site: (o.status, o.reason) for o in guarded.outcomes}["b"] == ("failed", "Flower error 8")


def test_below_the_quorum_the_stage_ends_with_the_reasons() -> None:
    guarded = strategy(min_sites=2)
    asked = ask(guarded)
    with pytest.raises(FederationError, match=r"1 usable replies.*b: no reply"):
        guarded.aggregate_train(1, [reply(asked["a"], "a", [1, 1], 300)])


@pytest.mark.parametrize("fault", ["no metrics", "no weight", "two weights", "broken bytes", "no arrays"])
def test_a_malformed_reply_is_that_sites_fault_alone(fault: str) -> None:
    guarded = strategy(min_sites=1)
    asked = ask(guarded)
    bad = reply(asked["b"], "b", [1, 2], 100)
    if fault == "no metrics":
        del bad.content[records.METRICS]
    elif fault == "no weight":
        bad.content[records.METRICS] = MetricRecord({"other": 1.0})
    elif fault == "two weights":
        bad.content[records.METRICS] = MetricRecord({records.WEIGHT: [100.0, 100.0]})
    elif fault == "broken bytes":
        bad.content.array_records[records.ARRAYS]["packed"].data = b"not an array"
    else:
        del bad.content[records.ARRAYS]
    combined, _ = guarded.aggregate_train(1, [reply(asked["a"], "a", [1, 1], 300), bad])
    assert combined is not None
    np.testing.assert_allclose(messages.unpack_arrays(combined)["w"], [1, 1])
    assert {outcome.site: outcome.status for outcome in guarded.outcomes}["b"] == "rejected"


def test_segmenter_rounds_weigh_by_patients_with_masks() -> None:
    federation = FederationSettings(min_sites=1)
    labelled = [member for member in MEMBERS if member.weight("segmenter")]
    guarded = GuardedStrategy(flower_strategy(federation, len(labelled)), labelled, federation, stage="segmenter")
    assert list(ask(guarded)) == ["a", "b"]


def test_a_second_reply_from_one_node_does_not_count() -> None:
    guarded = strategy(min_sites=1)
    asked = ask(guarded)
    twice = [reply(asked["a"], "a", [1, 1], 300), reply(asked["a"], "a", [9, 9], 300)]
    combined, _ = guarded.aggregate_train(1, twice)
    assert combined is not None
    np.testing.assert_allclose(messages.unpack_arrays(combined)["w"], [1, 1])


def test_fedprox_tells_the_sites_its_mu_and_fedadam_keeps_float32() -> None:
    prox = strategy(strategy="fedprox", proximal_mu=0.3)
    assert float(str(ask(prox)["a"].content.config_records[records.CONFIG][records.PROXIMAL_MU])) == 0.3
    adam = strategy(strategy="fedadam", min_sites=1)
    asked = ask(adam)
    combined, _ = adam.aggregate_train(1, [reply(asked["a"], "a", [1, 1], 300)])
    assert combined is not None
    assert messages.unpack_arrays(combined)["w"].dtype == np.float32


def test_a_site_that_comes_later_is_asked_from_the_next_round_on() -> None:
    federation, waiting = FederationSettings(max_update_norm=100.0), [MEMBERS[0]]
    guarded = GuardedStrategy(
        flower_strategy(federation, 2), [MEMBERS[1], MEMBERS[2]], federation, newcomers=lambda: waiting
    )
    assert list(ask(guarded)) == ["a", "b", "c"]
    waiting.clear()
    assert list(ask(guarded)) == ["a", "b", "c"]
