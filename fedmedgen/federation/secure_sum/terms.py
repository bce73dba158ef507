"""What all sites of one secure sum must agree on, word for word, before any of them hides behind the others."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fedmedgen.privacy.shared_noise import SharedNoise
from fedmedgen.schema import from_mapping, plain, require

HEX = r"[0-9a-f]{%d}"


@dataclass(frozen=True, kw_only=True)
class Terms:
    """One attempt at one sum: who takes part, how many must finish, what is asked, how long the vector is."""

    session: str  # 32 hexadecimal digits, of this attempt alone
    task: str  # the SHA-256 of the whole request: noise, clip, settings, arrays
    attempt: int  # counted by the server
    sites: tuple[str, ...]  # in the order of their names
    threshold: int
    colluders: int
    length: int  # numbers in the vector
    width: int  # bytes to a number of the ring
    masked: bool = True

    def __post_init__(self) -> None:
        require(bool(re.fullmatch(HEX % 32, self.session)), "session", self.session, "32 hexadecimal digits")
        require(bool(re.fullmatch(HEX % 64, self.task)), "task", self.task, "64 hexadecimal digits")
        require(1 <= self.attempt <= 1000, "attempt", self.attempt, "from 1 to 1000")
        require(list(self.sites) == sorted(set(self.sites)), "sites", self.sites, "in order, each once")
        require(
            1 <= self.length <= 2**27 and 1 <= self.width <= 8, "length and width", (self.length, self.width), "sizes"
        )
        self.shared.require_hidden(masked=self.masked)

    @property
    def shared(self) -> SharedNoise:
        """**Raises** `SettingsError` where so few sites must finish that the noise, or the masks, wouldn't hold."""
        return SharedNoise(sites=len(self.sites), threshold=self.threshold, colluders=self.colluders)

    @property
    def context(self) -> bytes:
        """What every signature and key of this sum is bound to."""
        return hashlib.sha256(
            b"fedmedgen secure sum 1" + json.dumps(self.to_mapping(), sort_keys=True).encode()
        ).digest()

    def point(self, site: str) -> int:
        """Where on the polynomials a site's shares lie."""
        return self.sites.index(site) + 1

    def to_mapping(self) -> dict[str, Any]:
        found: dict[str, Any] = plain(asdict(self))
        return found

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> "Terms":
        return from_mapping(cls, mapping, "terms")
