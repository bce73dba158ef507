"""A site's part in one sum: what it answers in each phase, once, and what it keeps from one to the next."""

import base64
import json
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fedmedgen.errors import PolicyError
from fedmedgen.federation.secure_sum import keys, shamir
from fedmedgen.federation.secure_sum.masks import added
from fedmedgen.federation.secure_sum.ring import Numbers
from fedmedgen.federation.secure_sum.terms import Terms

SHARE_BYTES = 33
Pinned = Mapping[str, bytes]  # public identities by site, from the site's own file


class Advert(NamedTuple):
    """A site's fresh public keys, signed by its identity: for sealing shares, and for agreeing on masks."""

    sealing: str
    masking: str
    signature: str


class Opening(NamedTuple):
    """A site's shares of one secret of each other: of the own mask's seed, or of the key of the masks in pairs."""

    seeds: Mapping[str, str]
    keys: Mapping[str, str]


@dataclass
class Party:
    """One site in one sum, `phase` being the one that it answered last.

    **Guarantee** Each phase is answered once and in its turn, a failed one not again. Whatever it is asked, it never
    opens a share of both secrets of one site, opens nothing before `threshold` pinned identities have signed the very
    list that it signed, and signs one list.
    """

    terms: Terms
    site: str
    sealing: str
    masking: str
    phase: str = "advertise"
    seed: str = ""
    adverts: dict[str, Advert] = field(default_factory=dict)  # of all who were told to share
    held: dict[str, tuple[str, str]] = field(default_factory=dict)  # shares of seed and key, by whose they are
    finished: list[str] = field(default_factory=list)
    begun: float = 0.0  # seconds since 1970

    @classmethod
    def begin(cls, terms: Terms, site: str, identity: bytes) -> "tuple[Party, Advert]":
        """Fresh keys, and their advertisement."""
        if site not in terms.sites:
            raise PolicyError(f"the sum is of {', '.join(terms.sites)}; {site} isn't among them")
        (sealing, public), (masking, other) = keys.fresh(), keys.fresh()
        signature = keys.sign(identity, *_advertised(terms, site, public, other))
        advert = Advert(public.hex(), other.hex(), signature.hex())
        party = cls(terms, site, sealing.hex(), masking.hex(), adverts={site: advert}, begun=time.time())
        return party, advert

    def share(self, adverts: Mapping[str, Advert], pinned: Pinned) -> dict[str, str]:
        """A sealed share of both secrets for each site whose keys its pinned identity has signed.

        **Raises** `PolicyError` for keys of which none could be agreed on later, when the step has been paid.
        """
        self._turn("advertise", "share")
        self._require_enough(adverts)
        for site, advert in adverts.items():
            _check_advert(self.terms, site, advert, pinned)
        if adverts.get(self.site) != self.adverts[self.site]:
            raise PolicyError("the site's own keys came back changed")
        if len({_bytes(key) for advert in adverts.values() for key in advert[:2]}) < 2 * len(adverts):
            raise PolicyError("two sites advertise one key")
        self.adverts = dict(adverts)
        for other in sorted(set(adverts) - {self.site}):
            self._mask_key(other)
        self.seed = os.urandom(keys.KEY_BYTES).hex()
        count = len(self.terms.sites)
        seeds, others = (shamir.split(bytes.fromhex(s), self.terms.threshold, count) for s in (self.seed, self.masking))
        dealt = {site: (_hex(seeds[p]), _hex(others[p])) for site in adverts for p in [self.terms.point(site)]}
        self.held[self.site] = dealt.pop(self.site)
        return {
            site: _text(keys.seal(self._sealing_key(self.site, site), bytes.fromhex("".join(pair))))
            for site, pair in dealt.items()
        }

    def receive(self, sealed: Mapping[str, str]) -> None:
        """Keep the shares of all who dealt some out; the masks in pairs are with them."""
        self._turn("share", "receive")
        self._require_enough({*sealed, self.site})
        if odd := sorted(set(sealed) - set(self.adverts) | ({self.site} & set(sealed))):
            raise PolicyError(f"shares came from {odd[0]}, who advertised no keys to be masked by")
        for site, content in sealed.items():
            try:
                pair = keys.unseal(self._sealing_key(site, self.site), _content(content))
            except PolicyError as error:
                raise PolicyError(f"what {site} dealt out: {error}") from error
            if len(pair) != 2 * SHARE_BYTES:
                raise PolicyError(f"{site} dealt out {len(pair)} bytes; two shares are {2 * SHARE_BYTES}")
            self.held[site] = (pair[:SHARE_BYTES].hex(), pair[SHARE_BYTES:].hex())

    def masked(self, numbers: Numbers) -> Numbers:
        """The numbers under the site's own mask and one for each other site that dealt out shares, if it is masked."""
        self._turn("receive", "mask")
        if not self.terms.masked:
            return added(numbers, [], self.terms.width)
        pairs = ((self._mask_key(other), self.site < other) for other in self.held if other != self.site)
        return added(numbers, [(bytes.fromhex(self.seed), True), *pairs], self.terms.width)

    def agree(self, finished: Iterable[str], identity: bytes) -> str:
        """A signature under the list of those whose vectors came: they are what the sum will be of."""
        self._turn("mask", "agree")
        listed = list(finished)
        if listed != sorted(set(listed)) or not set(listed) <= set(self.held) or self.site not in listed:
            raise PolicyError("the list must be in order, of sites that dealt out shares, and with this site")
        self._require_enough(listed)
        self.finished = listed
        return keys.sign(identity, *_agreed(self.terms, listed)).hex()

    def unmask(self, signatures: Mapping[str, str], pinned: Pinned) -> Opening:
        """Shares of the own mask's seed of all who finished, of the key of those who didn't; then all is forgotten."""
        self._turn("agree", "unmask")
        words = _agreed(self.terms, self.finished)
        signed = [s for s in self.finished if keys.is_signed(pinned[s], _bytes(signatures.get(s, "")), *words)]
        if len(signed) < self.terms.threshold:
            raise PolicyError(f"{len(signed)} sites signed the list; {self.terms.threshold} must, or nothing is opened")
        opening = Opening(
            {site: seed for site, (seed, _) in self.held.items() if site in self.finished},
            {site: key for site, (_, key) in self.held.items() if site not in self.finished},
        )
        self.forget()
        return opening

    @property
    def is_open(self) -> bool:
        """Whether it still holds a secret."""
        return bool(self.masking)

    def forget(self) -> None:
        """Let go of every secret."""
        self.sealing = self.masking = self.seed = ""
        self.held = {}

    def to_json(self) -> str:
        return json.dumps({**vars(self), "terms": self.terms.to_mapping()})

    @classmethod
    def from_json(cls, text: str) -> "Party":
        known: dict[str, Any] = json.loads(text)
        known["terms"] = Terms.from_mapping(known["terms"])
        known["adverts"] = {site: Advert(*words) for site, words in known["adverts"].items()}
        known["held"] = {site: (pair[0], pair[1]) for site, pair in known["held"].items()}
        return cls(**known)

    def _turn(self, before: str, now: str) -> None:
        if self.phase != before:
            raise PolicyError(f"the sum is past {before!r}, or not there yet: {self.phase!r} was answered last")
        self.phase = now

    def _require_enough(self, sites: Iterable[str]) -> None:
        if (count := len(set(sites))) < self.terms.threshold:
            raise PolicyError(f"{count} sites are left of the {self.terms.threshold} that the sum needs")

    def _mask_key(self, other: str) -> bytes:
        public = bytes.fromhex(self.adverts[other].masking)
        try:
            return mask_key(self.terms, bytes.fromhex(self.masking), public, self.site, other)
        except PolicyError as error:
            raise PolicyError(f"{other}: {error}") from error

    def _sealing_key(self, sender: str, receiver: str) -> bytes:
        other = self.adverts[receiver if sender == self.site else sender].sealing
        purpose = (b"share", self.terms.context, sender.encode(), receiver.encode())
        return keys.agreed(bytes.fromhex(self.sealing), bytes.fromhex(other), *purpose)


def mask_key(terms: Terms, own: bytes, public: bytes, site: str, other: str) -> bytes:
    """The key of the mask that two sites share: the first in order adds it, the second takes it off."""
    return keys.agreed(own, public, b"mask", terms.context, *(name.encode() for name in sorted((site, other))))


def _check_advert(terms: Terms, site: str, advert: Advert, pinned: Pinned) -> None:
    if site not in terms.sites or site not in pinned:
        raise PolicyError(f"keys came from {site!r}, who isn't of this sum, or whose identity isn't pinned here")
    words = _advertised(terms, site, _bytes(advert.sealing), _bytes(advert.masking))
    if not keys.is_signed(pinned[site], _bytes(advert.signature), *words):
        raise PolicyError(f"the keys that came as those of {site} aren't signed by the identity that is pinned here")


def _advertised(terms: Terms, site: str, *public: bytes) -> tuple[bytes, ...]:
    return b"keys", terms.context, site.encode(), *public


def _agreed(terms: Terms, finished: list[str]) -> tuple[bytes, ...]:
    return b"finished", terms.context, json.dumps(finished).encode()


def _hex(share: int) -> str:
    return share.to_bytes(SHARE_BYTES, "big").hex()


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _content(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise PolicyError("expected a sealed share in base64") from error


def _bytes(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError as error:
        raise PolicyError("expected hexadecimal digits") from error
