"""How the sites of a secure sum share one noise: how many there are, must finish, and may side with the server."""

import math
from dataclasses import dataclass

from fedmedgen.schema import require

FEWEST, MOST = 3, 20  # sites: below three no other is left to hide behind, above twenty every site pairs with too many


@dataclass(frozen=True, kw_only=True)
class SharedNoise:
    """Each site adds a share of the noise such that those who finish and don't collude add at least all of it.

    **Guarantee** Of `threshold` sites that finish, at most `colluders` keep their part back or tell it: the parts of
    the others add up to the whole variance. Two sets of `threshold` sites have an honest site in common.
    """

    sites: int
    threshold: int
    colluders: int

    def __post_init__(self) -> None:
        require(FEWEST <= self.sites <= MOST, "sites of a secure sum", self.sites, f"from {FEWEST} to {MOST}")
        require(self.colluders >= 1, "colluders", self.colluders, "at least 1")
        least = (self.sites + self.colluders) // 2 + 1
        good = least <= self.threshold <= self.sites
        require(good, "threshold", self.threshold, f"from {least}, more than (sites + colluders) / 2, to {self.sites}")

    @classmethod
    def of(cls, sites: int, *, colluders: int, threshold: int = 0) -> "SharedNoise":
        """Of a number of sites; without a threshold one site in five may be lost, as far as colluders allow."""
        least = (sites + colluders) // 2 + 1
        return cls(sites=sites, colluders=colluders, threshold=threshold or max(least, sites - sites // 5))

    def require_hidden(self, *, masked: bool) -> None:
        """**Raises** `SettingsError` for vectors without masks, unless each site adds all of the noise by itself."""
        words = f"{self.sites - 1}, all other sites, for vectors without masks: each site then adds all of the noise"
        require(masked or self.share >= 1, "federation.colluders", self.colluders, words)

    @property
    def share(self) -> float:
        """Of the variance, that each site adds."""
        return 1 / (self.threshold - self.colluders)

    def alone(self, noise_multiplier: float) -> float:
        """The noise that hides a site's patients where all others collude: its own part."""
        return noise_multiplier * math.sqrt(self.share)

    def total(self, noise_multiplier: float, finished: int) -> float:
        """The noise of a sum that so many sites finished: at least what was promised, since none is taken out."""
        return noise_multiplier * math.sqrt(finished * self.share)
