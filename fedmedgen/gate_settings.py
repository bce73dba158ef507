"""Settings of what comes after a run: what is planted in it for an audit, and what a set must show to be released."""

from dataclasses import dataclass
from typing import Literal

from fedmedgen.schema import positive, require


@dataclass(frozen=True, kw_only=True)
class AuditSettings:
    """What simulated sites plant and hold out; a real site's own policy file says so there."""

    canaries: int = 0  # planted at each site; a coin decides of each whether it takes part
    kind: Literal["directions", "images"] = "directions"  # of canaries: what they add, or what they look like
    holdout: float = 0.0  # share of a site's patients that never take part, for membership and copies to compare with
    cases: int = 400  # of members, and of patients held out, that are attacked
    confidence: float = 0.95  # of the lower bound on epsilon

    def __post_init__(self) -> None:
        require(self.canaries >= 0, "audit.canaries", self.canaries, "at least 0")
        require(0 <= self.holdout < 1, "audit.holdout", self.holdout, "from 0 to below 1")
        require(0.9 <= self.confidence <= 0.9999, "audit.confidence", self.confidence, "from 0.9 to 0.9999")
        positive("audit", self, "cases")


@dataclass(frozen=True, kw_only=True)
class GateSettings:
    """What a synthetic set must show before it is released."""

    coverage: float = 0.02  # smallest, of real cases by synthetic ones
    auc: float = 0.6  # smallest, of a classifier trained on the set alone (TSTR)
    dice: float = 0.5  # smallest, of a segmenter trained on the set alone (TSTR)
    membership_auc: float = 0.6  # largest, of any membership attack
    canaries: int = 100  # fewest for an audit by them to count
    copies: float = 0.05  # largest excess of copies over what the held-out patients give

    def __post_init__(self) -> None:
        for name in ("coverage", "auc", "dice", "membership_auc", "copies"):
            require(0 <= getattr(self, name) <= 1, f"gate.{name}", getattr(self, name), "from 0 to 1")
