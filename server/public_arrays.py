"""What a stage has at the server beside the weights that sites train: public arrays, and what is the server's own.

The arrays go to each site once, then their hash goes in their place. They may change after a round: what is computed
from the combined weights is post-processing, so it costs no privacy.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from flwr.app import ArrayRecord, Message, RecordDict

from fedmedgen.federation import messages, packing, records
from fedmedgen.federation.egress import Arrays

PUBLIC, STATE = "public", "state"
Step = Callable[[int, Arrays, "ServerPart"], None]


@dataclass
class ServerPart:
    """`public` travels to sites; `state` (an optimiser's, say) never leaves the server; both stand in each checkpoint.

    `step(round, weights, part)` is called after each round with the combined weights, before the checkpoint is written,
    and may put other arrays, of the same names and shapes, in the place of either.
    """

    public: Arrays = field(default_factory=dict)
    state: Arrays = field(default_factory=dict)
    step: Step | None = None

    def groups(self) -> dict[str, Arrays]:
        """As a checkpoint has them; without what there is none of."""
        return {name: group for name, group in ((PUBLIC, self.public), (STATE, self.state)) if group}

    def restore(self, groups: Mapping[str, Arrays]) -> None:
        """Go on from a checkpoint."""
        self.public, self.state = groups.get(PUBLIC, self.public), groups.get(STATE, self.state)


class Courier:
    """Sends public arrays with requests: in full to a site that isn't known to have them, else by their hash alone."""

    def __init__(self) -> None:
        self.digest = ""
        self._public: Arrays = {}
        self._holders: set[int] = set()
        self._by_hash: dict[int, Message] = {}  # of this round, by node

    def load(self, public: Arrays) -> None:
        """What goes out from now on."""
        digest = messages.digest_of(public) if public else ""
        if digest != self.digest:
            named = {records.PUBLIC_PREFIX + name: value for name, value in public.items()}
            self.digest, self._public, self._holders = digest, named, set()

    def addressed(self, asked: Sequence[Message]) -> list[Message]:
        """The messages of a round, which all hold the same model, each as its site needs it; packed once for all."""
        self._by_hash.clear()
        ready: dict[bool, ArrayRecord] = {}
        found = []
        for message in asked:
            node = message.metadata.dst_node_id
            in_full = bool(self.digest) and node not in self._holders
            if in_full not in ready:
                ready[in_full] = self._packed(message, in_full=in_full)
            if self.digest and not in_full:
                self._by_hash[node] = message
            found.append(_with(message, ready[in_full]))
        return found

    def again(self, reply: Message) -> Message | None:
        """What to ask once more: of a site that has lost what it had, the same with the arrays in full."""
        node, status = reply.metadata.src_node_id, ""
        with suppress(Exception):  # a site may send anything
            status = messages.unpack_reply(reply.content).config[records.STATUS]
        if status == records.DONE:
            self._holders.add(node)
        else:
            self._holders.discard(node)
        asked = self._by_hash.pop(node, None)
        if asked is None or status != records.LACKS_ARRAYS:
            return None
        return _with(asked, self._packed(asked, in_full=True))

    def _packed(self, message: Message, *, in_full: bool) -> ArrayRecord:
        arrays = message.content[records.ARRAYS]
        assert isinstance(arrays, ArrayRecord)
        own = packing.unpacked(arrays)
        return messages.pack_arrays({**own, **self._public} if in_full else own)


def _with(message: Message, record: ArrayRecord) -> Message:
    content = RecordDict(dict(message.content))
    content[records.ARRAYS] = record
    known = message.metadata
    return Message(content, dst_node_id=known.dst_node_id, message_type=known.message_type)
