"""A site's part in the statistics: a basis and cases in, one noisy vector out; and the shapes of both."""

import logging
from collections.abc import Iterator

import torch
from torch import Tensor

from fedmedgen.data.cases import Case, CaseSet
from fedmedgen.federation.local_round import Arrays, LocalResult, LocalRound, patients_of
from fedmedgen.models.basis import Basis, standardised
from fedmedgen.privacy import statistics
from fedmedgen.privacy.randomness import Stream
from fedmedgen.privacy.statistics import Layout
from fedmedgen.settings import Settings
from fedmedgen.training.rows import encode

VECTOR = "statistics"
FREQUENCIES = "frequencies"
Shapes = dict[str, tuple[int, ...]]

logger = logging.getLogger(__name__)


def layout_of(settings: Settings, dimension: int) -> Layout:
    """What stands where in a patient's vector of this study."""
    asked = settings.statistics
    return Layout(len(settings.data.classes), dimension, asked.kind, asked.features)


def masks_of(settings: Settings) -> tuple[str, ...]:
    """The mask classes that the generator draws, background first; none where it draws images alone."""
    return settings.data.mask_classes if settings.generator.with_masks else ()


def request_shapes(settings: Settings, dimension: int) -> Shapes:
    """The arrays of the public basis that a site is asked about."""
    height, width = settings.data.size
    image = (max(1, len(masks_of(settings))), height, width)
    shapes: Shapes = {"basis.mean": image, "basis.components": (dimension, *image), "basis.scale": (dimension,)}
    if settings.statistics.kind == "kernel-mean":
        shapes[FREQUENCIES] = (settings.statistics.features // 2, dimension)
    return shapes


def reply_shapes(settings: Settings, dimension: int) -> Shapes:
    """The one vector that answers."""
    return {VECTOR: (layout_of(settings, dimension).size,)}


def run(asked: LocalRound, arrays: Arrays, cases: CaseSet, *, stream: Stream) -> LocalResult:
    """The statistics of a site's cases in the basis that was sent; without a mechanism their exact mean.

    **Guarantee** with a mechanism, the result depends on each patient only through one `StagePlan.release`, in which
    each is one vector of all her images; one whose vector can't be computed contributes zero.
    """
    basis = Basis.from_arrays(arrays)
    layout = layout_of(asked.settings, basis.dimension)
    frequencies = torch.from_numpy(arrays[FREQUENCIES].copy()) if FREQUENCIES in arrays else None
    patients = patients_of(asked.stage.name, cases)
    masks = masks_of(asked.settings)

    def vectors() -> Iterator[Tensor]:
        for patient in patients:
            yield _vector(patient, masks, basis, layout, frequencies)

    if asked.mechanism is None:
        mean = sum(vectors(), torch.zeros(layout.size, dtype=torch.float64)) / max(1, len(patients))
    else:
        mean = statistics.release(vectors(), asked.mechanism, stream, size=layout.size)
    return LocalResult({VECTOR: mean.to(torch.float32).numpy()}, None)


def _vector(
    patient: tuple[Case, ...], masks: tuple[str, ...], basis: Basis, layout: Layout, frequencies: Tensor | None
) -> Tensor:
    """One patient's vector; zero, said in the site's own log alone, where her data can't be used."""
    try:
        labels = torch.tensor([-1 if case.label is None else case.label for case in patient])
        images, _ = standardised(encode(patient, masks))
        return statistics.patient_vector(basis.coefficients(images), labels, layout, frequencies)
    except Exception:
        logger.exception("a patient's statistics can't be computed; she contributes zero")
        return torch.zeros(layout.size, dtype=torch.float64)
