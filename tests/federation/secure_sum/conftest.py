"""A sum among sites in one process, whose messages a test may lose, change or replay."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pytest
from numpy.typing import NDArray

from fedmedgen.federation.secure_sum import keys, ring
from fedmedgen.federation.secure_sum.collecting import Collecting
from fedmedgen.federation.secure_sum.party import Party
from fedmedgen.federation.secure_sum.terms import Terms
from fedmedgen.privacy.shared_noise import SharedNoise

WIDTH = 3


@dataclass
class Play:
    """All parties of one sum and its server; `lost` names the phase in which a site is heard of no more."""

    terms: Terms
    identities: dict[str, bytes]
    vectors: Mapping[str, NDArray[np.int64]]
    parties: dict[str, Party] = field(default_factory=dict)
    masked: dict[str, ring.Numbers] = field(default_factory=dict)
    lost: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.pinned = {site: keys.public_of(key) for site, key in self.identities.items()}
        self.collecting = Collecting(self.terms)

    def there(self, sites: list[str], phase: str) -> list[str]:
        left = [site for site in sites if self.lost.get(site) != phase]
        self.collecting.require_enough(len(left), phase)
        return left

    def advertise(self) -> None:
        for site in self.there(list(self.terms.sites), "advertise"):
            self.parties[site], self.collecting.adverts[site] = Party.begin(self.terms, site, self.identities[site])

    def share(self) -> None:
        for site in self.there(sorted(self.collecting.adverts), "share"):
            self.collecting.sealed[site] = self.parties[site].share(self.collecting.adverts, self.pinned)

    def mask(self) -> None:
        for site in self.there(sorted(self.collecting.sealed), "mask"):
            self.parties[site].receive(self.collecting.for_site(site))
            self.masked[site] = self.parties[site].masked(ring.from_whole(self.vectors[site], self.terms.width))
            self.collecting.add(site, self.masked[site])

    def agree(self) -> None:
        for site in self.there(self.collecting.finished, "agree"):
            listed = self.collecting.finished
            self.collecting.signatures[site] = self.parties[site].agree(listed, self.identities[site])

    def unmask(self) -> None:
        for site in self.there(sorted(self.collecting.signatures), "unmask"):
            self.collecting.openings[site] = self.parties[site].unmask(self.collecting.signatures, self.pinned)

    def run(self) -> NDArray[np.int64]:
        for phase in (self.advertise, self.share, self.mask, self.agree, self.unmask):
            phase()
        return ring.to_whole(self.collecting.sum(), self.terms.width)

    def plain(self) -> NDArray[np.int64]:
        """The sum of the vectors of those who finished, without any masks."""
        return np.sum([self.vectors[site] for site in self.collecting.finished], axis=0)


class Stage:
    """Makes plays."""

    def __call__(
        self,
        sites: int = 5,
        *,
        length: int = 7,
        threshold: int = 0,
        lost: Mapping[str, str] | None = None,
        seed: int = 0,
        masked: bool = True,
    ) -> Play:
        names = tuple(f"site-{number:02}" for number in range(sites))
        colluders = 1 if masked else sites - 1
        shared = SharedNoise.of(sites, colluders=colluders, threshold=threshold)
        terms = Terms(
            session=secrets.token_hex(16), task="0" * 64, attempt=1, sites=names, threshold=shared.threshold,
            colluders=colluders, length=length, width=WIDTH, masked=masked,
        )  # fmt: skip
        random = np.random.default_rng(seed)
        vectors = {name: random.integers(-100_000, 100_000, length) for name in names}
        return Play(terms, {name: secrets.token_bytes(32) for name in names}, vectors, lost=lost or {})


@pytest.fixture
def stage() -> Stage:
    return Stage()
