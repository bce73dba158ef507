"""Replies one at a time: their order, those that never come, and what the server holds meanwhile."""

import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedmedgen.federation import messages, records
from fedmedgen.settings import FederationSettings
from server.strategy import GuardedStrategy, Member, flower_strategy
from server.streaming import OneAtATime, WeightedMean

pytestmark = pytest.mark.usefixtures("identity")
MODEL = {f"layer-{number}": np.full((256, 256), number, np.float32) for number in range(16)}
MODEL_BYTES = sum(value.nbytes for value in MODEL.values())
PACKED = messages.pack_arrays(MODEL)["packed"]


@dataclass
class Sites:
    """A grid on which every site answers when its answer is pulled; as Flower's, it keeps no model that was sent."""

    silent: set[int] = field(default_factory=set)
    packed: Callable[[int], ArrayRecord] = lambda node: messages.pack_arrays(model_of(node))
    asked: dict[str, Message] = field(default_factory=dict)
    pulled: list[str] = field(default_factory=list)

    def push_messages(self, asked: Iterable[Message]) -> list[str]:
        for message in asked:
            known = message.metadata
            self.asked[str(known.dst_node_id)] = Message(RecordDict(), known.dst_node_id, known.message_type)
        return list(self.asked)

    def pull_messages(self, names: list[str]) -> Iterator[Message]:
        self.pulled += names
        for name in names:
            if int(name) not in self.silent:
                yield answer(self.asked[name], self.packed)


def model_of(node: int) -> dict[str, Any]:
    return {name: value + np.float32(node) for name, value in MODEL.items()}


def arrived(_: int) -> ArrayRecord:
    """A reply's bytes, without what a site needs to make them."""
    data = b"".join([PACKED.data[:1], memoryview(PACKED.data)[1:]])
    return ArrayRecord({"packed": Array(PACKED.dtype, PACKED.shape, PACKED.stype, data)})


def answer(asked: Message, packed: Callable[[int], ArrayRecord]) -> Message:
    node = asked.metadata.dst_node_id
    content = RecordDict(
        {
            records.CONFIG: ConfigRecord({records.SITE: site(node), records.STATUS: records.DONE}),
            records.METRICS: MetricRecord({records.WEIGHT: float(10 * node)}),
            records.ARRAYS: packed(node),
        }
    )
    return Message(content, reply_to=asked)


def site(node: int) -> str:
    return f"site-{node:03}"


def one_round(count: int, grid: Any) -> tuple[ArrayRecord, GuardedStrategy]:
    federation = FederationSettings(max_update_norm=1e9)
    members = [Member(node, site(node), "patient", 10 * node, 0) for node in range(1, count + 1)]
    guarded = GuardedStrategy(flower_strategy(federation, count), members, federation)
    one_by_one = OneAtATime(grid)
    replies = one_by_one.send_and_receive(  # as Flower's loop does
        guarded.configure_train(1, messages.as_flowers(MODEL), ConfigRecord(), grid), timeout=0.1
    )
    combined, _ = guarded.aggregate_train(1, replies)
    assert combined is not None
    return combined, guarded


def peak_models(count: int) -> float:
    """The most that a round holds at once, in copies of the model, the model that it starts from left out."""
    one_round(2, Sites(packed=arrived))
    tracemalloc.start()
    try:
        one_round(count, Sites(packed=arrived))
        return tracemalloc.get_traced_memory()[1] / MODEL_BYTES - 1
    finally:
        tracemalloc.stop()


def test_the_mean_is_the_weighted_one_of_those_that_came() -> None:
    grid = Sites(silent={2})
    combined, guarded = one_round(3, grid)
    expected = (10 * 1 + 30 * 3) / 40
    np.testing.assert_allclose(combined["layer-5"].numpy(), 5 + expected, rtol=1e-6)
    assert [outcome.status for outcome in guarded.outcomes] == ["done", "no-reply", "done"]
    assert list(dict.fromkeys(grid.pulled)) == ["1", "2", "3"]


def test_where_all_came_the_mean_is_flowers_own_to_the_bit() -> None:
    coins = np.random.default_rng(3)
    models = [{"w": coins.normal(size=500).astype(np.float32)} for _ in range(5)]
    weights = [7.0, 11.0, 13.0, 17.0, 19.0]
    mean = WeightedMean(sum(weights))
    for model, weight in zip(models, weights, strict=True):
        mean.add(model, weight)
    own = sum(model["w"] * (weight / sum(weights)) for model, weight in zip(models, weights, strict=True))
    assert np.array_equal(mean.take()["w"], own)


def test_a_hundred_sites_take_no_more_of_the_servers_memory_than_two() -> None:
    two, hundred = peak_models(2), peak_models(100)
    assert hundred < two + 0.2
    assert hundred < 3
