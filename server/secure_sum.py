"""One round as a secure sum: five phases with whoever is left, and of the sites' vectors their sum alone."""

import json
import logging
import re
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedmedgen.errors import FederationError, PolicyError, ReplyError
from fedmedgen.federation import messages, records
from fedmedgen.federation.egress import Arrays, Reply
from fedmedgen.federation.plan import Stage
from fedmedgen.federation.secure_sum import ring
from fedmedgen.federation.secure_sum.collecting import Collecting
from fedmedgen.federation.secure_sum.own_part import Grid as WholeGrid
from fedmedgen.federation.secure_sum.own_part import Shapes, shaped
from fedmedgen.federation.secure_sum.party import SHARE_BYTES, Advert, Opening
from fedmedgen.federation.secure_sum.terms import Terms
from server.rounds import Rounds, show
from server.strategy import Member, Outcome
from server.streaming import OneAtATime

logger = logging.getLogger(__name__)
Take = Callable[[str, Reply], None]
SHARE = f"[0-9a-f]{{{2 * SHARE_BYTES}}}"


def summed(grid: Grid, rounds: Rounds, stage: Stage, number: int, arrays: Arrays, shapes: Shapes) -> Arrays:
    """The mean over the sites that finish, as arrays of `shapes`; each attempt is one row a site.

    **Raises** `FederationError` where too few sites finish each of the attempts that were planned for.
    """
    for attempt in range(1, stage.attempts + 1):
        one = Attempt.of(grid, rounds, stage, number, attempt, arrays, shapes)
        try:
            mean = one.run()
        except (FederationError, PolicyError, ReplyError) as error:
            logger.warning("round %d, attempt %d: %s", number, attempt, error)
            if attempt == stage.attempts:
                raise FederationError(f"round {number}: {error} ({one.lost_words()})") from error
        else:
            return shaped(mean, shapes)
        finally:
            rounds.note(stage, number, one.outcomes())
            show(rounds, stage, number)
    raise AssertionError("a stage has at least one attempt")


@dataclass
class Attempt:
    """One attempt at one sum: who is left, and what it has cost so far."""

    grid: Any
    timeout: float
    members: Mapping[str, Member]
    whole: WholeGrid
    asked: RecordDict  # the round, as every site is asked it
    collecting: Collecting
    lost: dict[str, str] = field(default_factory=dict)
    bytes_up: dict[str, int] = field(default_factory=dict)
    bytes_down: dict[str, int] = field(default_factory=dict)
    messages: int = 0
    started: float = field(default_factory=time.monotonic)

    @classmethod
    def of(  # noqa: PLR0913  (what an attempt is at)
        cls, grid: Grid, rounds: Rounds, stage: Stage, number: int, attempt: int, arrays: Arrays, shapes: Shapes
    ) -> "Attempt":
        assert rounds.agreed is not None
        assert rounds.agreed.shared is not None
        members = {member.site: member for member in rounds.members}
        config = rounds.request_config(stage)
        config[records.SERVER_ROUND] = number
        asked = RecordDict({records.CONFIG: config, records.ARRAYS: messages.pack_arrays(arrays)})
        shared, length = rounds.agreed.shared, sum(int(np.prod(shape)) for shape in shapes.values())
        whole = WholeGrid(next(s for s in rounds.agreed.stages if s.name == stage.name), shared, length)
        terms = Terms(
            masked=rounds.store.settings.federation.masks,
            session=secrets.token_hex(16), task=messages.unpack_request(asked).digest, attempt=attempt,
            sites=tuple(sorted(members)), threshold=shared.threshold, colluders=shared.colluders,
            length=length, width=whole.width(sum(member.weight(stage.name) for member in members.values())),
        )  # fmt: skip
        timeout = rounds.store.settings.federation.round_seconds
        return cls(OneAtATime(grid), timeout, members, whole, asked, Collecting(terms))

    def run(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """All phases; the mean over the patients whom the sites that finished declare."""
        sums, sites = self.collecting, sorted(self.members)
        terms = sums.terms.to_mapping()
        self._phase(records.ADVERTISE, dict.fromkeys(sites, terms), self._take_advert)
        self._phase(records.SHARE, dict.fromkeys(sorted(sums.adverts), sums.adverts), self._take_shares)
        self._phase(records.MASK, {site: sums.for_site(site) for site in sorted(sums.sealed)}, self._take_masked)
        finished = {"finished": sums.finished}
        self._phase(records.AGREE, dict.fromkeys(sums.finished, finished), self._take_signature)
        self._phase(records.UNMASK, dict.fromkeys(sorted(sums.signatures), sums.signatures), self._take_opening)
        patients = sum(self.members[site].weight(self.whole.mechanism.name) for site in sums.finished)
        return self.whole.mean(ring.to_whole(sums.sum(), sums.terms.width), patients)

    def outcomes(self) -> list[Outcome]:
        """A row for each site: done where its vector is in the sum."""
        seconds = time.monotonic() - self.started
        return [
            Outcome(
                site, records.DONE if site in self.collecting.finished else "failed", self.lost.get(site, ""),
                bytes_up=self.bytes_up.get(site, 0), bytes_down=self.bytes_down.get(site, 0),
                bits=8 * self.collecting.terms.width, seconds=seconds,
            )
            for site in sorted(self.members)
        ]  # fmt: skip

    def lost_words(self) -> str:
        return "; ".join(f"{site}: {why}" for site, why in sorted(self.lost.items()))

    def _phase(self, phase: str, words: Mapping[str, Any], take: Take) -> None:
        """Ask each of some sites, and take what they answer; one whose answer is of no use is lost."""
        self.collecting.require_enough(len(words), "what came before")
        sent = [self._message(phase, site, words[site]) for site in words]
        waited, taken = set(words), 0
        for reply in self.grid.send_and_receive(sent, timeout=self.timeout):
            site = next((s for s in waited if self.members[s].node == reply.metadata.src_node_id), None)
            if site is None:
                continue
            waited.remove(site)
            try:
                take(site, self._reply(site, reply))
                taken += 1
            except Exception as error:  # a site may send anything
                self.lost.setdefault(site, f"{phase}: {str(error)[:200]}")
            messages.let_go(reply)
        for site in waited:
            self.lost.setdefault(site, f"{phase}: no reply within {self.timeout:g} s")
        self.collecting.require_enough(taken, phase)

    def _message(self, phase: str, site: str, words: Any) -> Message:
        terms, config = self.collecting.terms, dict(self.asked.config_records[records.CONFIG])
        if phase not in (records.ADVERTISE, records.MASK):
            config = {records.SETTINGS: config[records.SETTINGS]} if self.members[site].simulation else {}
        config |= {records.SESSION: terms.session, records.MASKING: json.dumps(words, separators=(",", ":"))}
        content = RecordDict({records.CONFIG: ConfigRecord(config)})
        if phase == records.MASK:
            content[records.ARRAYS] = self.asked[records.ARRAYS]
        self.bytes_down[site] = self.bytes_down.get(site, 0) + messages.size_of(content)
        self.messages += 1
        return Message(content, dst_node_id=self.members[site].node, message_type=records.of_phase(phase))

    def _reply(self, site: str, message: Message) -> Reply:
        if message.has_error():
            raise ReplyError(f"Flower error {message.error.code}")
        self.bytes_up[site] = self.bytes_up.get(site, 0) + messages.size_of(message.content)
        reply = messages.unpack_reply(message.content)
        if reply.config[records.STATUS] != records.DONE:
            raise ReplyError(reply.config[records.STATUS])
        if reply.config.get(records.SITE) != site:
            raise ReplyError(f"the node that joined as {site} replied as {reply.config.get(records.SITE)!r}")
        return reply

    def _take_advert(self, site: str, reply: Reply) -> None:
        self.collecting.adverts[site] = Advert(*map(str, _words(reply)))

    def _take_shares(self, site: str, reply: Reply) -> None:
        dealt = {str(name): str(content) for name, content in _words(reply).items()}
        if set(dealt) != set(self.collecting.adverts) - {site}:  # else a mask would stay in the sum, or come off twice
            raise ReplyError(f"{site} must deal out shares to each other site whose keys it was shown")
        self.collecting.sealed[site] = dealt

    def _take_masked(self, site: str, reply: Reply) -> None:
        self.collecting.add(site, ring.unpack(np.asarray(reply.arrays[records.MASKED]), self.collecting.terms.width))

    def _take_signature(self, site: str, reply: Reply) -> None:
        self.collecting.signatures[site] = str(_words(reply))

    def _take_opening(self, site: str, reply: Reply) -> None:
        words = _words(reply)
        opening = Opening(dict(words["seeds"]), dict(words["keys"]))
        shares = [*opening.seeds.values(), *opening.keys.values()]
        if not all(isinstance(share, str) and re.fullmatch(SHARE, share) for share in shares):
            raise ReplyError(f"{site} opened what is no share")
        self.collecting.openings[site] = opening


def _words(reply: Reply) -> Any:
    try:
        return json.loads(reply.config[records.MASKING])
    except (KeyError, ValueError) as error:
        raise ReplyError("the reply lacks the words of its phase") from error
