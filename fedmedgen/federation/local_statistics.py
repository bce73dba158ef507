"""A site's part in the statistics: what is asked about and cases in, one noisy vector out; and the shapes of both.

The first round asks about coefficients in a public basis, each later one about features learned from what is released.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedmedgen.data.cases import Case, CaseSet
from fedmedgen.data.crafted import is_crafted
from fedmedgen.federation.local_round import Arrays, LocalResult, LocalRound, patients_of
from fedmedgen.models import refinement
from fedmedgen.models.basis import Basis, standardised
from fedmedgen.privacy import statistics
from fedmedgen.privacy.canaries import OVERSIZE
from fedmedgen.privacy.randomness import Stream
from fedmedgen.privacy.statistics import Layout
from fedmedgen.settings import Settings
from fedmedgen.training.rows import encode

VECTOR = "statistics"
FREQUENCIES = "frequencies"
OPEN_CANARY = (
    0.02  # of the length of the sum, where nothing hides a canary: to be seen among the patients, not to drown them
)
Shapes = dict[str, tuple[int, ...]]
Coefficients = Callable[[Tensor], Tensor]

logger = logging.getLogger(__name__)


def layout_of(settings: Settings, dimension: int, number: int = 1) -> Layout:
    """What stands where in a patient's vector of this study, in that round."""
    asked = settings.statistics
    kind = asked.kind if number == 1 else "moments"
    return Layout(len(settings.data.classes), dimension, kind, asked.features)


def masks_of(settings: Settings) -> tuple[str, ...]:
    """The mask classes that the generator draws, background first; none where it draws images alone."""
    return settings.data.mask_classes if settings.generator.with_masks else ()


def as_released(settings: Settings, cases: Sequence[Case]) -> Tensor:
    """Cases ``[B, C, H, W]`` as a release has them: encoded, masks with the slope and weight that the study asks."""
    masks, asked = masks_of(settings), settings.statistics
    if not cases:
        return torch.zeros(0, max(1, len(masks)), *settings.data.size)
    x = encode(cases, masks, slope=asked.mask_slope)
    x[:, 1:] *= asked.mask_weight
    return x


def dimension_of(arrays: Mapping[str, NDArray[np.float32]], number: int) -> int:
    """How many coefficients or features a site is asked about; 0 where the arrays don't say."""
    name = "basis.scale" if number == 1 else f"{refinement.PREFIX}directions"
    return len(arrays[name]) if name in arrays and arrays[name].ndim else 0


def request_shapes(settings: Settings, dimension: int, number: int = 1) -> Shapes:
    """The arrays of the public basis, or of the learned features, that a site is asked about."""
    if number > 1:
        return refinement.shapes(**_sizes(settings), dimension=dimension)
    height, width = settings.data.size
    image = (max(1, len(masks_of(settings))), height, width)
    shapes: Shapes = {"basis.mean": image, "basis.components": (dimension, *image), "basis.scale": (dimension,)}
    if settings.statistics.kind == "kernel-mean":
        shapes[FREQUENCIES] = (settings.statistics.features // 2, dimension)
    return shapes


def reply_shapes(settings: Settings, dimension: int, number: int = 1) -> Shapes:
    """The one vector that answers."""
    return {VECTOR: (layout_of(settings, dimension, number).size,)}


def run(asked: LocalRound, arrays: Arrays, cases: CaseSet, *, stream: Stream) -> LocalResult:
    """The statistics of a site's cases in what they are asked about; without a mechanism their exact mean.

    **Guarantee** with a mechanism, the result depends on each patient only through one `StagePlan.release`, in which
    each is one vector of all her images; one whose vector can't be computed contributes zero.
    """
    size = layout_of(asked.settings, dimension_of(arrays, asked.round), asked.round).size
    vectors = vectors_of(asked, arrays, cases)
    if asked.mechanism is None:
        total = sum(vectors, torch.zeros(size, dtype=torch.float64))
        if asked.canaries is not None:
            asked.canaries.join_openly([total], OPEN_CANARY)
        mean = total / max(1, len(patients_of(asked.stage.name, cases)))
    else:
        mean = statistics.release(vectors, asked.mechanism, stream, size=size, canaries=asked.canaries)
    return LocalResult({VECTOR: mean.to(torch.float32).numpy()}, None)


def vectors_of(asked: LocalRound, arrays: Arrays, cases: CaseSet) -> Iterator[Tensor]:
    """One vector for each patient, before the clip: zero where it can't be computed."""
    coefficients = _asked_about(asked, arrays)
    layout = layout_of(asked.settings, dimension_of(arrays, asked.round), asked.round)
    frequencies = torch.from_numpy(arrays[FREQUENCIES].copy()) if FREQUENCIES in arrays else None
    for patient in patients_of(asked.stage.name, cases):
        oversize = OVERSIZE if asked.mechanism is not None and is_crafted(patient) else 1.0
        yield oversize * _vector(patient, asked.settings, coefficients, layout, frequencies)


def _asked_about(asked: LocalRound, arrays: Arrays) -> Coefficients:
    """From standardised images to what the round asks about."""
    if asked.round == 1:
        return Basis.from_arrays(arrays).coefficients
    features = refinement.from_arrays(arrays, **_sizes(asked.settings))
    return lambda images: features(images[:, :1])


def _sizes(settings: Settings) -> dict[str, int]:
    return {"num_classes": len(settings.data.classes), "networks": settings.statistics.networks}


@torch.no_grad()
def _vector(
    patient: tuple[Case, ...],
    settings: Settings,
    coefficients: Coefficients,
    layout: Layout,
    frequencies: Tensor | None,
) -> Tensor:
    """One patient's vector; zero, said in the site's own log alone, where her data can't be used."""
    try:
        labels = torch.tensor([-1 if case.label is None else case.label for case in patient])
        images, _ = standardised(as_released(settings, patient))
        known = [coefficients(image[None]) for image in images]  # so that rounding doesn't depend on how many
        return statistics.patient_vector(torch.cat(known), labels, layout, frequencies)
    except Exception:
        logger.exception("a patient's statistics can't be computed; she contributes zero")
        return torch.zeros(layout.size, dtype=torch.float64)
