"""A site's answers in the phases of a secure sum: what it checks, spends and keeps in each."""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import RecordDict

from fedmedgen.errors import PolicyError, PrivacyError, SettingsError
from fedmedgen.federation import messages, plan, records
from fedmedgen.federation.egress import Checked, Reply
from fedmedgen.federation.holdout_record import HoldoutRecord
from fedmedgen.federation.local_round import LocalRound
from fedmedgen.federation.messages import Request
from fedmedgen.federation.policy import check_request
from fedmedgen.federation.secure_policy import check_terms, simulated_identity
from fedmedgen.federation.secure_sum import ring
from fedmedgen.federation.secure_sum.keys import identity_of
from fedmedgen.federation.secure_sum.own_part import Grid, own_vectors
from fedmedgen.federation.secure_sum.party import Advert, Party
from fedmedgen.federation.secure_sum.terms import Terms
from fedmedgen.privacy.budget import Plan
from fedmedgen.privacy.randomness import Stream
from fedmedgen.privacy.rounding import Whole
from fedmedgen.settings import RuntimeSettings, Settings
from sites.checks import check_arrays, check_round, expected_of
from sites.site import Site
from sites.sums import Sums

logger = logging.getLogger(__name__)
Words = Mapping[str, Any]


@dataclass(frozen=True)
class SummingSite(Site):
    """A site in secure sums.

    **Guarantee** Its state is on disk before an answer leaves; the spend is on disk before a case is touched; each
    attempt at a sum is a spend of its own, with masks and noise of its own.
    """

    @property
    def sums(self) -> Sums:
        return Sums(self.folder / "sums")

    def answer(self, phase: str, content: RecordDict) -> Checked:
        """One phase, whose message has passed the list."""
        config = content.config_records[records.CONFIG]
        session, words = str(config[records.SESSION]), _read(str(config[records.MASKING]))
        with self.sums.turn(session):
            if phase == records.ADVERTISE:
                return self._advertise(content, Terms.from_mapping(words), session)
            party = self.sums.load(session)
            before = party.phase
            if phase == records.MASK:
                return self._mask(party, messages.unpack_request(content), words)
            try:
                found = self._in_words(party, phase, content, words)
            except (AttributeError, LookupError, TypeError) as error:
                raise PolicyError(f"the words aren't those of the phase {phase!r}: {error!r}") from error
            finally:
                if party.phase != before:
                    self.sums.save(party)
            return self._said(found)

    def introduce(self, settings: Settings) -> Checked:
        """As any site; sums that nobody finished are forgotten before a new study."""
        self.sums.forget_old()
        return super().introduce(settings)

    def _in_words(self, party: Party, phase: str, content: RecordDict, words: Words) -> Any:
        """The phases in which no case is touched."""
        pinned = self.policy.secure_sum.pinned
        if phase == records.SHARE:
            return party.share({site: Advert(*map(str, advert)) for site, advert in words.items()}, pinned)
        if phase == records.AGREE:
            return party.agree(map(str, words["finished"]), self._identity(content))
        return party.unmask({site: str(signature) for site, signature in words.items()}, pinned)._asdict()

    def _advertise(self, content: RecordDict, terms: Terms, session: str) -> Checked:
        """Fresh keys, where policy, budget and terms allow the whole of what is asked."""
        if terms.session != session:
            raise PolicyError("the terms are those of another session")
        self._agreed(messages.unpack_request(content), terms)
        self.sums.require_new(session)
        self.sums.make_room()
        party, advert = Party.begin(terms, self.policy.site, self._identity(content))
        self.sums.save(party)
        return self._said(list(advert))

    def _agreed(self, request: Request, terms: Terms) -> Plan:
        settings, policy = request.settings, self.policy
        sent = sum(array.size for array in request.arrays.values())
        check_request(policy, settings, parameters=sent, stage=request.stage)
        check_round(request)
        check_terms(policy.secure_sum, policy.site, terms)
        if request.stage != plan.STATISTICS:
            expected_of(policy, request)  # before a network of that size is built for the self-check
        if policy.audit_canaries:
            raise PolicyError(
                "this site plants canaries in its rounds, which a secure sum can't carry: audit_canaries: 0"
            )
        if plan.shared_noise(settings, len(terms.sites)) != terms.shared:
            raise PolicyError("the terms share the noise otherwise than the study's settings say")
        if settings.federation.masks != terms.masked:
            raise PolicyError("the terms mask vectors otherwise than the study's settings say")
        agreed = self._agree(request, self.ledger(), terms.shared)
        mechanism = next(item for item in agreed.stages if item.name == request.stage)
        try:
            Grid(mechanism, terms.shared, terms.length).check()
        except PrivacyError as error:
            raise PolicyError(str(error)) from error
        return agreed

    def _mask(self, party: Party, request: Request, sealed: Words) -> Checked:
        """The masked vector, once the shares of the others are there and the step is paid."""
        terms = party.terms
        if request.digest != terms.task:
            raise PolicyError("the round isn't the one whose terms this site has signed")
        agreed = self._agreed(request, terms)
        expected = expected_of(self.policy, request)
        check_arrays(request, expected)
        length = sum(int(np.prod(shape)) for shape in expected.answer.values())
        if length != terms.length:
            raise PolicyError(f"the terms are of {terms.length} numbers; the round gives {length}")
        before = party.phase
        try:
            party.receive({site: str(content) for site, content in sealed.items()})
        finally:
            if party.phase != before:
                self.sums.save(party)
        HoldoutRecord.of(self.folder, request.run).note(self.policy.audit_holdout, self._holdout_key(request.settings))
        self._reserve(request, self.ledger(), agreed, self._spend(terms))
        masked = party.masked(ring.from_whole(self._whole(request, agreed, terms), terms.width))
        self.sums.save(party)
        packed: Any = ring.pack(masked, terms.width)  # bytes, where all else that leaves is float32
        reply = Reply(self._config(), arrays={records.MASKED: packed})
        return self._let_out(reply, {records.MASKED: (length * terms.width,)}, request.stage)

    def _whole(self, request: Request, agreed: Plan, terms: Terms) -> Whole:
        """The site's part of the sum; noise alone where a real site's data fail."""
        settings = self.policy.on_own_machine(request.settings)
        stage = plan.stage_named(settings, request.stage)
        mechanism = next(item for item in agreed.stages if item.name == stage.name)
        asked = LocalRound(settings, stage, request.round, mechanism)
        grid = Grid(mechanism, terms.shared, terms.length)
        cases = self.load(settings)
        try:
            stream = self._own_stream(request, terms)
            return grid.part(own_vectors(asked, request.arrays, self._taking_part(cases, settings), stream), stream)
        except Exception:
            if self.policy.simulation:
                raise
            logger.exception("site %s: the round failed; its part is noise", self.policy.site)
            asked = replace(asked, settings=replace(settings, runtime=RuntimeSettings(device="cpu")))
            stream = self._own_stream(request, terms)
            return grid.part(own_vectors(asked, request.arrays, cases.with_cases([]), stream), stream)

    def _own_stream(self, request: Request, terms: Terms) -> Stream:
        """Of noise, coins and rounding: the operating system's at a real site, each attempt's own in a simulation."""
        return self._stream(request, "secure sum", str(terms.attempt))

    def _spend(self, terms: Terms) -> str:
        """The name of an attempt's spend; of a seeded simulation, which draws the same again, the attempt's number."""
        which = str(terms.attempt) if self.policy.simulation else terms.session
        return hashlib.sha256(f"{terms.task} {which}".encode()).hexdigest()

    def _identity(self, content: RecordDict) -> bytes:
        if self.policy.simulation:
            return simulated_identity(messages.unpack_settings(content).seed, self.policy.site)
        return identity_of(Path(self.policy.secure_sum.identity))

    def _config(self) -> dict[str, str]:
        return {records.SITE: self.policy.site, records.STATUS: records.DONE}

    def _said(self, words: Any) -> Checked:
        text = json.dumps(words, ensure_ascii=False, separators=(",", ":"))
        return self._let_out(Reply({**self._config(), records.MASKING: text}), {}, plan.GENERATOR)


def _read(text: str) -> dict[str, Any]:
    """**Raises** `SettingsError` for text that is no JSON object."""
    try:
        words = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"the words of a secure sum must be JSON: {error}") from error
    if not isinstance(words, dict):
        raise SettingsError("the words of a secure sum must be a JSON object")
    return words
