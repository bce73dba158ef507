"""Public arrays from the server: in full once, by their hash from then on, and again to a site that has lost them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict

from fedmedgen.composition import compose
from fedmedgen.errors import FederationError
from fedmedgen.federation import messages, packing, records
from fedmedgen.federation.egress import Arrays
from fedmedgen.federation.plan import Stage
from fedmedgen.settings import FederationSettings
from server.public_arrays import PUBLIC, STATE, ServerPart
from server.rounds import Rounds, _AfterRound, run_stage
from server.run_store import RunStore
from server.strategy import GuardedStrategy, Member, flower_strategy
from server.streaming import OneAtATime

pytestmark = pytest.mark.usefixtures("identity")
BASE = {"base": np.arange(4, dtype=np.float32)}
START = {"w": np.zeros(2, np.float32)}
NAMES = {1: "a", 2: "b"}


@dataclass
class Sites:
    """Sites that keep what they are sent, until they lose it."""

    held: dict[int, set[str]] = field(default_factory=lambda: {node: set() for node in NAMES})
    sent: list[tuple[int, bool]] = field(default_factory=list)  # to whom, and whether in full
    stubborn: bool = False  # says that it lacks what it was just sent
    asked: list[Message] = field(default_factory=list)

    def push_messages(self, asked: Iterable[Message]) -> list[str]:
        before = len(self.asked)
        self.asked += asked
        return [str(number) for number in range(before, len(self.asked))]

    def pull_messages(self, names: list[str]) -> Iterator[Message]:
        for name in names:
            yield self._answer(self.asked[int(name)])

    def _answer(self, asked: Message) -> Message:
        node, content = asked.metadata.dst_node_id, asked.content
        full = any(
            name.startswith(records.PUBLIC_PREFIX) for name in packing.unpacked(content.array_records[records.ARRAYS])
        )
        self.sent.append((node, full))
        digest = str(content.config_records[records.CONFIG][records.PUBLIC])
        if full:
            self.held[node].add(digest)
        has = digest in self.held[node] and not self.stubborn
        status = records.DONE if has else records.LACKS_ARRAYS
        reply = RecordDict({records.CONFIG: ConfigRecord({records.SITE: NAMES[node], records.STATUS: status})})
        if has:
            reply[records.METRICS] = MetricRecord({records.WEIGHT: 10.0})
            reply[records.ARRAYS] = messages.pack_arrays({"w": np.full(2, node, np.float32)})
        return Message(reply, reply_to=asked)


@pytest.fixture
def strategy() -> GuardedStrategy:
    members = [Member(node, name, "patient", 10, 0) for node, name in NAMES.items()]
    federation = FederationSettings(min_sites=1)
    guarded = GuardedStrategy(flower_strategy(federation, 2), members, federation)
    guarded.courier.load(BASE)
    return guarded


def one_round(guarded: GuardedStrategy, sites: Any, number: int = 1) -> dict[str, Any]:
    grid: Any = OneAtATime(sites, guarded.again)
    asked = guarded.configure_train(number, messages.as_flowers(START), ConfigRecord(), grid)
    combined, _ = guarded.aggregate_train(number, grid.send_and_receive(asked, timeout=1.0))
    assert combined is not None
    return dict(messages.unpack_arrays(combined))


def test_arrays_travel_once_to_each_site(strategy: GuardedStrategy) -> None:
    sites = Sites()
    first = one_round(strategy, sites)
    before = [item.bytes_down for item in strategy.outcomes]
    second = one_round(strategy, sites, 2)
    assert sites.sent == [(1, True), (2, True), (1, False), (2, False)]
    assert set(first) == set(second) == {"w"}
    saved = [a - item.bytes_down for a, item in zip(before, strategy.outcomes, strict=True)]
    assert min(saved) >= BASE["base"].nbytes


def test_a_site_that_has_lost_them_is_sent_them_in_the_same_round(strategy: GuardedStrategy) -> None:
    sites = Sites()
    one_round(strategy, sites)
    sites.held[2].clear()
    sites.sent.clear()
    np.testing.assert_allclose(one_round(strategy, sites, 2)["w"], [1.5, 1.5])
    assert sites.sent == [(1, False), (2, False), (2, True)]
    assert [item.status for item in strategy.outcomes] == [records.DONE] * 2
    assert strategy.outcomes[1].bytes_down > 2 * strategy.outcomes[0].bytes_down


def test_a_site_that_lacks_them_whatever_it_is_sent_is_left_out(strategy: GuardedStrategy) -> None:
    sites = Sites()
    one_round(strategy, sites)
    sites.stubborn = True
    with pytest.raises(FederationError, match=records.LACKS_ARRAYS):
        one_round(strategy, sites, 2)
    assert sites.sent[2:] == [(1, False), (1, True), (2, False), (2, True)]


def test_changed_arrays_go_out_in_full_again_and_unchanged_ones_do_not(strategy: GuardedStrategy) -> None:
    sites = Sites()
    one_round(strategy, sites)
    strategy.courier.load(dict(BASE))
    one_round(strategy, sites, 2)
    strategy.courier.load({"base": BASE["base"] + 1})
    one_round(strategy, sites, 3)
    assert [full for _, full in sites.sent] == [True, True, False, False, True, True]


def test_what_a_stage_has_beside_the_weights_stands_in_its_checkpoints() -> None:
    part = ServerPart({"base": BASE["base"]}, {"moment": np.ones(3, np.float32)})
    other = ServerPart()
    other.restore({"weights": START, **part.groups()})
    assert set(part.groups()) == {PUBLIC, STATE}
    np.testing.assert_array_equal(other.public["base"], BASE["base"])
    np.testing.assert_array_equal(other.state["moment"], np.ones(3))
    assert ServerPart().groups() == {}


def test_the_servers_own_step_changes_them_in_the_checkpoint_of_its_round(
    strategy: GuardedStrategy, tmp_path: Path
) -> None:
    def step(number: int, weights: Arrays, part: ServerPart) -> None:
        part.public = {"base": part.public["base"] + weights["w"][0]}
        part.state = {"steps": np.array([number], np.float32)}

    store = RunStore.create(compose(["study=demo", "smoke=true", f"out={tmp_path / 'run'}"]))
    rounds, stage = Rounds(store, list(strategy.members.values()), {}, None), Stage("generator", 1, 1, 0.1)
    part = ServerPart(dict(BASE), step=step)
    before = strategy.courier.digest
    after = _AfterRound(rounds, stage, strategy, {}, None, part)
    after(1, messages.as_flowers({"w": np.full(2, 5, np.float32)}))
    assert strategy.courier.digest == messages.digest_of(part.public) != before
    latest = store.latest()
    assert latest is not None
    resumed = ServerPart(dict(BASE))
    weights = run_stage(OneAtATime(Sites()), rounds, stage, START, {}, latest, part=resumed)  # type: ignore[arg-type]
    np.testing.assert_array_equal(weights["w"], [5, 5])
    np.testing.assert_array_equal(resumed.public["base"], BASE["base"] + 5)
    np.testing.assert_array_equal(resumed.state["steps"], [1])
