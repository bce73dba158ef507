"""The Poisson-sampled Gaussian mechanism of one stage: claim and mechanism in one frozen object."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedmedgen.errors import PrivacyError
from fedmedgen.privacy.randomness import Stream
from fedmedgen.schema import from_mapping, require

if TYPE_CHECKING:  # policies and ledgers hold plans, and are read without torch
    from torch import Tensor

GRID_BITS = 20  # a release is a multiple of the noise's size, rounded up to a power of two, over 2 to this


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """`steps` noisy sums over Poisson samples of patients, each patient's part clipped to `clip_norm`.

    **Guarantee** Everything `draw` and `release` make public is what the accountant composes: `steps` Gaussian
    mechanisms of `noise_multiplier`, each on a sample that takes every patient independently with `sample_rate`.
    """

    name: str
    sample_rate: float
    noise_multiplier: float
    clip_norm: float
    steps: int
    denominator_patients: int  # the public N of the site's policy, never the true count of a sample

    def __post_init__(self) -> None:
        where = f"stage {self.name!r}: "
        require(bool(self.name), "stage name", self.name, "not empty")
        require(0 < self.sample_rate <= 1, where + "sample_rate", self.sample_rate, "above 0 and at most 1")
        for key in ("noise_multiplier", "clip_norm"):
            value = getattr(self, key)
            require(math.isfinite(value) and value > 0, where + key, value, "a finite number above 0")
        for key in ("sample_rate", "noise_multiplier", "clip_norm"):
            object.__setattr__(self, key, float(getattr(self, key)))  # 1 and 1.0 are one plan
        require(self.steps >= 1, where + "steps", self.steps, "at least 1")
        require(self.denominator_patients >= 1, where + "denominator_patients", self.denominator_patients, "at least 1")

    def draw(self, stream: Stream, num_patients: int) -> NDArray[np.int64]:
        """Indices of the patients in one step's sample: one coin each, so the sample's size varies and may be zero."""
        return np.flatnonzero(stream.uniform(num_patients) < self.sample_rate).astype(np.int64)

    def release(self, clipped_sum: Sequence["Tensor"], stream: Stream) -> list["Tensor"]:
        """The noisy mean: (sum + noise_multiplier * clip_norm * normal) / (sample_rate * denominator_patients).

        **Raises** `PrivacyError` if the sum isn't finite, which the engines rule out.
        **Guarantee** Noise is added in double precision; the result is rounded to a grid a millionth of the noise wide,
        then to float32, so that the low bits of the sum don't survive beside it.
        """
        scale = self.noise_multiplier * self.clip_norm
        expected_patients = self.sample_rate * self.denominator_patients
        return [_noisy(part, scale=scale, stream=stream) / expected_patients for part in clipped_sum]

    def to_mapping(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> "StagePlan":
        return from_mapping(cls, mapping, "stage")


def _noisy(part: "Tensor", *, scale: float, stream: Stream) -> "Tensor":
    import torch

    if not bool(torch.isfinite(part).all()):
        raise PrivacyError("the clipped sum holds a value that is not finite: the engine is broken; nothing was sent")
    noise = torch.from_numpy(stream.normal_float64(part.numel())).reshape(part.shape)
    noisy = part.detach().to("cpu", torch.float64) + scale * noise
    grid = math.ldexp(1.0, math.frexp(scale)[1] - GRID_BITS)
    return ((noisy / grid).round() * grid).to(torch.float32).to(part.device)
