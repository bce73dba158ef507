"""The server's part in one sum: who is left in each phase, and the sum of those who finished."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from fedmedgen.errors import FederationError, ReplyError
from fedmedgen.federation.secure_sum import keys, shamir
from fedmedgen.federation.secure_sum.masks import added
from fedmedgen.federation.secure_sum.party import Advert, Opening, mask_key
from fedmedgen.federation.secure_sum.ring import Numbers
from fedmedgen.federation.secure_sum.terms import Terms


@dataclass
class Collecting:
    """What came so far, by site. In each phase the sites asked are those who answered the one before."""

    terms: Terms
    adverts: dict[str, Advert] = field(default_factory=dict)
    sealed: dict[str, Mapping[str, str]] = field(default_factory=dict)  # by who dealt, then for whom
    finished: list[str] = field(default_factory=list)
    signatures: dict[str, str] = field(default_factory=dict)
    openings: dict[str, Opening] = field(default_factory=dict)
    total: Numbers | None = None

    def add(self, site: str, masked: Numbers) -> None:
        """One more masked vector; only their sum is kept."""
        if len(masked) != self.terms.length:
            raise ReplyError(f"{site} sent {len(masked)} numbers; the sum is of {self.terms.length}")
        self.total = masked.copy() if self.total is None else self.total + masked
        self.finished = sorted([*self.finished, site])

    def for_site(self, site: str) -> dict[str, str]:
        """The shares that others dealt out to a site."""
        return {sender: dealt[site] for sender, dealt in self.sealed.items() if sender != site and site in dealt}

    def require_enough(self, sites: int, phase: str) -> None:
        """**Raises** `FederationError` where too few are left: the attempt ends, and nothing was learned."""
        if sites < self.terms.threshold:
            raise FederationError(
                f"secure sum: {sites} of {len(self.terms.sites)} sites answered {phase!r}; {self.terms.threshold} must"
            )

    def sum(self) -> Numbers:
        """The sum of the vectors of `finished`, their masks taken off.

        **Raises** `FederationError` or `ReplyError` where too few shares came, or some are false.
        """
        self.require_enough(len(self.openings), "unmask")
        assert self.total is not None
        masks = [*self._own_masks(), *self._pairs_left()]
        return added(self.total, masks if self.terms.masked else [], self.terms.width)

    def _own_masks(self) -> Iterator[tuple[bytes, bool]]:
        for site in self.finished:
            yield self._secret({by: opening.seeds.get(site) for by, opening in self.openings.items()}), False

    def _pairs_left(self) -> Iterator[tuple[bytes, bool]]:
        """Masks of those who dealt out shares and never sent a vector: one side of each is in the sum."""
        for lost in sorted(set(self.sealed) - set(self.finished)):
            key = self._secret({by: opening.keys.get(lost) for by, opening in self.openings.items()})
            if keys.exchange_public(key).hex() != self.adverts[lost].masking:
                raise ReplyError(f"the key that was opened for {lost} isn't the one it advertised")
            for site in self.finished:
                public = bytes.fromhex(self.adverts[site].masking)
                yield mask_key(self.terms, key, public, lost, site), site > lost

    def _secret(self, shares: Mapping[str, str | None]) -> bytes:
        known = {self.terms.point(by): int(share, 16) for by, share in shares.items() if share is not None}
        return shamir.join(known, self.terms.threshold)
