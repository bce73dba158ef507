"""One strategy around Flower's own: pinned sites in the order of their names, checked replies, a quorum."""

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAdam, FedAvg, FedProx, Strategy
from numpy.typing import NDArray

from fedmedgen.errors import FederationError, ReplyError, SpentError
from fedmedgen.federation import messages, packing, records
from fedmedgen.federation.aggregation import check_reply
from fedmedgen.federation.egress import Reply
from fedmedgen.federation.plan import GENERATOR, SEGMENTER
from fedmedgen.settings import FederationSettings
from server.public_arrays import Courier
from server.streaming import WeightedMean

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Member:
    """A site that has joined: the node it runs on and its public counts."""

    node: int
    site: str
    unit: str
    patients: int
    labelled: int
    simulation: bool = False  # says the site's own policy: its noise is seeded

    def weight(self, stage: str) -> int:
        """The public count that a stage's aggregation weighs by."""
        return self.labelled if stage == SEGMENTER else self.patients


@dataclass(frozen=True)
class Outcome:
    """What came of one site's part in one round."""

    site: str
    status: str
    reason: str = ""
    loss: float | None = None
    update_norm: float | None = None
    bytes_up: int = 0
    bytes_down: int = 0
    bits: int = 0  # of a number of a masked vector; 0 where none was masked
    seconds: float = 0.0


def flower_strategy(federation: FederationSettings, members: int) -> FedAvg:
    """Flower's own strategy that combines the replies, by setting."""
    common: dict[str, Any] = {
        "fraction_evaluate": 0.0,
        "min_train_nodes": members,
        "min_available_nodes": members,
        "weighted_by_key": records.WEIGHT,
        "arrayrecord_key": records.ARRAYS,
        "configrecord_key": records.CONFIG,
    }
    if federation.strategy == "fedadam":
        return FedAdam(**common, eta=federation.server_learning_rate)
    if federation.strategy == "fedprox":
        return FedProx(**common, proximal_mu=federation.proximal_mu)
    return FedAvg(**common)


class PinnedNodes:
    """The part of a grid that Flower's sampling asks: the nodes that have joined, no others, without waiting."""

    def __init__(self, members: Sequence[Member]) -> None:
        self._nodes = [member.node for member in members]

    def get_node_ids(self) -> list[int]:
        return self._nodes


class GuardedStrategy(Strategy):
    """Wraps one of Flower's strategies; a bad reply is rejected with its reason and the round goes on with the rest.

    **Raises** `FederationError` in `aggregate_train` when fewer than `min_sites` replies are usable, as `SpentError` if
    all that are missing were refused for their budget.
    """

    def __init__(  # noqa: PLR0913  (what a stage is; all but the first three by name)
        self,
        inner: FedAvg,
        members: Sequence[Member],
        federation: FederationSettings,
        *,
        stage: str = GENERATOR,
        rounds_done: int = 0,
        on_sent: Callable[[int], None] = lambda _: None,
        reply_shapes: Mapping[str, tuple[int, ...]] | None = None,
        newcomers: Callable[[], Sequence[Member]] = lambda: (),
    ) -> None:
        self.inner = inner
        self.members: dict[int, Member] = {}
        self._take_in(members)
        self.federation = federation
        self.stage = stage
        self.rounds_done = rounds_done
        self.round = rounds_done
        self.outcomes: list[Outcome] = []
        self._on_sent = on_sent
        self._reply_shapes = reply_shapes
        self._newcomers = newcomers
        self._reference: Mapping[str, NDArray[np.float32]] = {}
        self._sent_at = 0.0
        self._bytes_down: dict[int, int] = {}
        self.courier = Courier()

    def _take_in(self, members: Sequence[Member]) -> None:
        known = {**self.members, **{member.node: member for member in members}}
        self.members = {member.node: member for member in sorted(known.values(), key=lambda member: member.site)}

    def summary(self) -> None:
        logger.info("%s over %s", type(self.inner).__name__, ", ".join(m.site for m in self.members.values()))

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        self.round = number = server_round + self.rounds_done
        self._reference = packing.unpacked(arrays)
        if self._reply_shapes is not None:  # the answer is no update of what was sent
            self._reference = {name: np.zeros(shape, np.float32) for name, shape in self._reply_shapes.items()}
        self._take_in(self._newcomers())
        pinned: Any = PinnedNodes(list(self.members.values()))
        if self.courier.digest:
            config[records.PUBLIC] = self.courier.digest
        drawn = self.courier.addressed(list(self.inner.configure_train(number, arrays, config, pinned)))
        drawn.sort(key=lambda message: self.members[message.metadata.dst_node_id].site)
        self._bytes_down = {message.metadata.dst_node_id: messages.size_of(message.content) for message in drawn}
        self._sent_at = time.monotonic()
        self._on_sent(number)
        return drawn

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        outcomes: dict[str, Outcome] = {}
        mean = WeightedMean(sum(member.weight(self.stage) for member in self.members.values()))
        for message in replies:
            member = self.members.get(message.metadata.src_node_id)
            if member is None or member.site in outcomes:
                logger.warning("a reply from node %s was not asked for; left out", message.metadata.src_node_id)
                continue
            outcomes[member.site], reply = self._judge(message, member, time.monotonic() - self._sent_at)
            if reply is not None:
                mean.add(reply.arrays, member.weight(self.stage))
            del reply
            messages.let_go(message)  # before the next one comes
        for member in self.members.values():
            late = Outcome(member.site, "no-reply", f"no reply within {self.federation.round_seconds:g} s")
            outcomes.setdefault(member.site, late)
        self.outcomes = [outcomes[site] for site in sorted(outcomes)]
        self._require_quorum(server_round + self.rounds_done)
        if not isinstance(self.inner, FedAdam):  # a plain mean is the next model
            return messages.as_flowers_one_by_one(mean.take()), None
        combined, _ = self.inner.aggregate_train(server_round + self.rounds_done, [_as_one(mean)])
        if combined is None:
            raise FederationError("Flower's strategy combined nothing although replies were usable")
        return _as_float32(combined), None

    def again(self, reply: Message) -> Message | None:
        """What to ask a site once more before its reply counts: what it lacked, sent along."""
        repeated = self.courier.again(reply)
        if repeated is not None:
            self._bytes_down[reply.metadata.src_node_id] += messages.size_of(repeated.content)
        return repeated

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        return None

    def _judge(self, message: Message, member: Member, seconds: float) -> tuple[Outcome, Reply | None]:
        """What came of a site's part, and its reply if it can be combined; whatever is wrong with it is its own."""
        known: dict[str, Any] = {"bytes_down": self._bytes_down.get(member.node, 0), "seconds": seconds}
        if message.has_error():
            logger.warning("%s failed: %s", member.site, message.error.reason)
            return Outcome(member.site, "failed", f"Flower error {message.error.code}", **known), None
        try:
            known["bytes_up"] = messages.size_of(message.content)
            reply = messages.unpack_reply(message.content)
            _check_sender(reply, member, self.stage)
            if (status := reply.config[records.STATUS]) != records.DONE:
                return Outcome(member.site, status, status, **known), None
            norm = check_reply(reply.arrays, self._reference, max_norm=self.federation.max_update_norm)
        except Exception as error:
            words = str(error) if isinstance(error, ReplyError) else f"malformed reply ({type(error).__name__})"
            return Outcome(member.site, "rejected", words, **known), None
        loss = reply.metrics.get(records.LOSS)
        return Outcome(member.site, records.DONE, "", loss, norm, **known), reply

    def _require_quorum(self, number: int) -> None:
        usable = sum(item.status == records.DONE for item in self.outcomes)
        if usable < self.federation.min_sites:
            missing = [item for item in self.outcomes if item.status != records.DONE]
            lost = "; ".join(f"{item.site}: {item.reason}" for item in missing)
            spent = all(item.status == records.REFUSED_BUDGET for item in missing)
            raise (SpentError if spent else FederationError)(
                f"round {number}: {usable} usable replies, federation.min_sites is {self.federation.min_sites} ({lost})"
            )


def _check_sender(reply: Reply, member: Member, stage: str) -> None:
    if reply.config.get(records.SITE) not in (member.site, ""):
        raise ReplyError(f"the node that joined as {member.site} replied as {reply.config.get(records.SITE)!r}")
    weight, declared = reply.metrics.get(records.WEIGHT), member.weight(stage)
    if reply.config[records.STATUS] == records.DONE and weight != declared:
        raise ReplyError(f"the aggregation weight is {weight}; {member.site} declared {declared} when it joined")


@dataclass(frozen=True)
class Combinable:
    """The part of a message that Flower's strategies read: arrays and a weight, none of a site's own words."""

    content: RecordDict

    def has_error(self) -> bool:
        return False


def _as_one(mean: WeightedMean) -> Any:
    """The mean as the one reply that Flower's strategy goes on with: a mean of one, then its step."""
    weight = MetricRecord({records.WEIGHT: mean.weight})
    arrays = messages.as_flowers_one_by_one(mean.take())
    return Combinable(RecordDict({records.ARRAYS: arrays, records.METRICS: weight}))


def _as_float32(combined: ArrayRecord) -> ArrayRecord:
    arrays = messages.unpack_arrays(combined)
    return messages.as_flowers({name: arrays[name].astype(np.float32) for name in sorted(arrays)})
