"""Canaries: made-up patients planted in a run, so that what is released tells how much it gives away of one.

Each adds a direction of its own. A coin that stays at the site decides of each whether it takes part; whoever can
guess the coins from what was released has measured a leak. Canaries come from no patient and never enter a
denominator, so the promise to patients is what it was; they add to what is learned, as noise would.

**Source** Steinke, Nasr and Jagielski 2023 (one run); Andrew et al. 2023 (random directions in federated learning).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedmedgen.errors import SettingsError
from fedmedgen.privacy.mechanism import StagePlan
from fedmedgen.privacy.per_patient import add_clipped
from fedmedgen.privacy.randomness import Stream

CUT = 3.0  # deviations of what is released
MEDIAN = 0.6745  # of the size of a normal number, in deviations
OVERSIZE = 100.0  # times the clip norm, before the clip: a mechanism that doesn't clip shows


class Directions:
    """`count` orthonormal directions in the space of some tensors, each random signs on places of its own.

    **Raises** `SettingsError` if there are fewer numbers than directions.
    """

    def __init__(self, shapes: Sequence[torch.Size], count: int, seed: int) -> None:
        self._shapes, self.count = list(shapes), count
        self._size = sum(shape.numel() for shape in self._shapes)
        if count > self._size:
            raise SettingsError(
                f"{count} canaries need as many numbers to hide in; the stage releases {self._size}: plant fewer"
            )
        draw = np.random.default_rng(seed)
        self.width = self._size // count
        self._places = draw.permutation(self._size)[: self.width * count].reshape(count, self.width)
        self._signs = draw.choice([-1.0, 1.0], (count, self.width)) / math.sqrt(self.width)

    def one(self, number: int, length: float) -> list[Tensor]:
        """One direction, of that length, in the shapes of the tensors, float64."""
        return self.together(np.arange(len(self._places)) == number, length)

    def together(self, included: NDArray[np.bool_], length: float) -> list[Tensor]:
        """The sum of some directions, each of that length, in the shapes of the tensors, float64."""
        flat = np.zeros(self._size)
        flat[self._places[included]] = length * self._signs[included]
        parts = torch.split(torch.from_numpy(flat), [shape.numel() for shape in self._shapes])
        return [part.reshape(shape) for part, shape in zip(parts, self._shapes, strict=True)]

    def along(self, values: Sequence[Tensor]) -> NDArray[np.float64]:
        """How far the tensors lie along each direction ``[count]``."""
        flat = torch.cat([value.detach().to("cpu", torch.float64).flatten() for value in values]).numpy()
        found: NDArray[np.float64] = (flat[self._places] * self._signs).sum(axis=1)
        return found


@dataclass(eq=False)
class Planted:
    """The canaries of one round: who takes part, and what was found of each in what was released.

    `included` says of each whether its coin came up; `scores` adds up evidence, higher where a canary took part: the
    log-likelihood ratio of the two, were the mechanism as it claims, up to a constant.
    """

    included: NDArray[np.bool_]
    seed: int

    def __post_init__(self) -> None:
        self.scores = np.zeros(len(self.included))
        self._directions: Directions | None = None

    def join(self, total: Sequence[Tensor], stage: StagePlan, stream: Stream) -> None:
        """Add to a step's sum those that take part, by the patients' own coins and clip; `OVERSIZE` before it."""
        known = self._known([value.shape for value in total])
        taking = np.flatnonzero(self.included[: known.count])
        for place in stage.draw(stream, len(taking)):
            add_clipped(total, known.one(int(taking[place]), OVERSIZE * stage.clip_norm), stage.clip_norm)

    def note(self, released: Sequence[Tensor], stage: StagePlan) -> None:
        """Look for each canary in what a step released.

        Numbers much farther from 0 than most are cut: what patients have in common stands there, and drowns canaries.
        """
        sums = [value.detach().double() * stage.sample_rate * stage.denominator_patients for value in released]
        most = CUT * float(torch.cat([value.flatten().abs() for value in sums]).median()) / MEDIAN
        known = self._known([value.shape for value in released])
        found = known.along([value.clamp(-most, most) for value in sums])
        self.scores[: known.count] += found * stage.sample_rate / (stage.noise_multiplier**2 * stage.clip_norm)

    def join_openly(self, total: Sequence[Tensor], share: float) -> None:
        """Without a mechanism: add each that takes part, `share` of the sum long, and look for all in the very sum."""
        known = self._known([value.shape for value in total])
        size = share * float(torch.stack([value.double().norm() for value in total]).norm())
        for value, part in zip(total, known.together(self.included[: known.count], size), strict=True):
            value += part.to(value)
        self.scores[: known.count] += known.along(total)

    def _known(self, shapes: Sequence[torch.Size]) -> Directions:
        if self._directions is None:
            room = sum(shape.numel() for shape in shapes)  # what has no place in a small stage is left out of it
            self._directions = Directions(shapes, min(len(self.included), room), self.seed)
        return self._directions
