"""Settings of secure sums: whether sites share one noise, and how many must finish for it."""

from dataclasses import dataclass
from typing import Literal

from fedmedgen.schema import positive, require


@dataclass(frozen=True, kw_only=True)
class SecureSumSettings:
    """How what sites send is added up."""

    aggregation: Literal["plain", "secure"] = "plain"  # secure: masked vectors, and one noise that all sites share
    colluders: int = 1  # of a secure sum: sites that may side with the server
    masks: bool = True  # false: the same sum in the clear, where colluders leave every site all of its own noise
    threshold: int = 0  # sites that must finish it; 0: four in five
    attempts: int = 1  # at it in each round, each planned and paid for

    def __post_init__(self) -> None:
        positive("federation", self, "colluders", "attempts")
        plain = {"colluders": 1, "masks": True, "threshold": 0, "attempts": 1}  # which say nothing where it is plain
        for name, value in plain.items():
            found, words = getattr(self, name), f"{value} but with federation.aggregation=secure".lower()
            require(self.shared or found == value, f"federation.{name}", found, words)

    @property
    def shared(self) -> bool:
        """Whether sites share one noise."""
        return self.aggregation == "secure"


def check_shared(generator_steps: int, *, whole: bool, masks: int, private: bool, canaries: int) -> None:
    """Refuse what a secure sum can't carry: it is of one noisy step a round, in which no site can plant its own."""
    how = "with federation.aggregation=secure"
    require(private, "privacy.mode", "none", f"patient {how}: the noise is what sites share")
    require(generator_steps == 1, "privacy.generator_steps", generator_steps, f"1 {how}: each sum is one step")
    words = f"one whose gradient is all that its rounds ask for {how}: unet, dit, coefficients or vae, all of it shared"
    require(whole, "generator", "latent, gan, or a part", words)
    require(masks == 0, "segmenter.rounds", masks, f"0 {how}")
    require(canaries == 0, "audit.canaries", canaries, f"0 {how}: their scores would need each site's own sum")
