"""A site's own part of a sum: its patients' vectors and its share of the noise, in whole numbers; and the way back."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedmedgen import devices
from fedmedgen.data.cases import CaseSet
from fedmedgen.federation import local_statistics
from fedmedgen.federation.local_round import (
    Arrays,
    LocalRound,
    build_model,
    draws_of,
    load_arrays,
    loss_of,
    patients_of,
)  # fmt: skip
from fedmedgen.federation.plan import STATISTICS
from fedmedgen.federation.secure_sum.ring import largest_sum, width_for
from fedmedgen.privacy.mechanism import StagePlan
from fedmedgen.privacy.per_patient import make_engine
from fedmedgen.privacy.randomness import Stream
from fedmedgen.privacy.rounding import Whole, cells_for, check_variance, largest_square, rounded, skellam_noise
from fedmedgen.privacy.shared_noise import SharedNoise
from fedmedgen.training.fit import clipped_sum_of, drawn_rows

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Grid:
    """The whole numbers of one stage's sums: how many cells the clip norm has, how much noise is promised."""

    mechanism: StagePlan
    shared: SharedNoise
    length: int

    @property
    def cells(self) -> int:
        return cells_for(self.length)

    @property
    def variance(self) -> float:
        """Of the noise that the claim counts on, in squared cells."""
        return (self.mechanism.noise_multiplier * self.cells) ** 2

    def check(self) -> None:
        """**Raises** `PrivacyError` where the sampler can't draw a site's share of the noise in whole numbers."""
        check_variance(self.shared.share * self.variance)

    def width(self, patients: int) -> int:
        """Bytes to a number, so that a sum over so many patients wraps around with probability 2^-40 at most."""
        largest = largest_square(self.length, self.cells) ** 0.5
        variance = self.shared.sites * self.shared.share * self.variance
        return width_for(largest_sum(patients, largest, variance, self.length))

    def part(self, vectors: Iterator[NDArray[np.float64]], stream: Stream) -> Whole:
        """The sum of patients' vectors, each clipped and rounded by itself, plus this site's share of the noise.

        **Guarantee** A patient moves the sum by a whole vector of squared norm `largest_square` at most.
        """
        total = skellam_noise(self.shared.share * self.variance, self.length, stream)
        for vector in vectors:
            total += rounded(vector, self.mechanism.clip_norm, self.cells, stream)
        return total

    def mean(self, total: Whole, patients: int) -> NDArray[np.float64]:
        """The sum over all sites as a mean over the public number of expected patients."""
        expected = self.mechanism.sample_rate * patients
        return total.astype(np.float64) * (self.mechanism.clip_norm / (self.cells * expected))


def own_vectors(asked: LocalRound, arrays: Arrays, cases: CaseSet, stream: Stream) -> Iterator[NDArray[np.float64]]:
    """One vector for each patient that takes part in the step: her statistics, or the gradient of her loss."""
    if asked.stage.name == STATISTICS:
        for vector in local_statistics.vectors_of(asked, arrays, cases):
            yield vector.numpy()
        return
    assert asked.mechanism is not None
    model = build_model(asked.settings, asked.stage.name)
    load_arrays(model, arrays)
    model.to(device := devices.device_of(asked.settings))
    privacy = asked.settings.privacy
    engine = make_engine(privacy.engine, model, loss_of(asked.settings, asked.stage.name), precision=privacy.precision)
    draws = draws_of(asked, model, patients_of(asked.stage.name, cases))
    generator = stream.torch_generator()
    for index in asked.mechanism.draw(stream, len(draws)):
        if rows := drawn_rows(draws[index], generator, device):
            yield flat(clipped_sum_of(engine, rows, asked.mechanism.clip_norm))


def flat(tensors: list[Tensor]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = torch.cat([one.detach().cpu().to(torch.float64).flatten() for one in tensors]).numpy()
    return found


def shaped(vector: NDArray[np.float64], shapes: Shapes) -> dict[str, NDArray[np.float32]]:
    """The vector as arrays of these shapes, in their order."""
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes.values()])[:-1]
    parts = np.split(vector.astype(np.float32), ends)
    return {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
