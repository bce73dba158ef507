"""Are synthetic masks anatomically possible? Connected parts and areas, held against those of real masks."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import label
from scipy.stats import ks_2samp

from fedmedgen.data.cases import CaseSet, MaskArray
from fedmedgen.evaluation.recipe import skipped

SPECK = 0.01  # of the class's pixels in a mask: smaller parts aren't counted
BINS = 20
EIGHT = np.ones((3, 3), int)  # pixels that touch by a corner hang together


def mask_shapes(synthetic: CaseSet, real: CaseSet) -> dict[str, Any]:
    """For each mask class: the usual number of connected parts, how many masks have it, and areas (shares of an image).

    `parts` is what most real masks have; `as_usual` the share of masks with that number; `areas` the mean and sd;
    `distance` the largest gap between the two distributions of areas (Kolmogorov-Smirnov, 0 to 1); `histogram` the
    share of masks in each of `edges`' bins. Real masks give the floor: not all of them are as usual. `distinct` counts
    different masks, `commonest` is the share of the one that comes most often: a generator may repeat a few.
    """
    sides = {"synthetic": _masks(synthetic), "real": _masks(real)}
    if not all(sides.values()) or synthetic.mask_classes != real.mask_classes:
        return skipped("one side has no masks" if synthetic.mask_classes == real.mask_classes else "other mask classes")
    names = enumerate(real.mask_classes[1:], 1)
    return {
        name: _of_class({side: [mask == value for mask in masks] for side, masks in sides.items()})
        for value, name in names
    }


def parts(mask: NDArray[np.bool_]) -> int:
    """Connected parts of a mask ``[H, W]``, less specks."""
    places, _ = label(mask, structure=EIGHT)
    sizes = np.bincount(places.ravel())[1:]
    return int((sizes > SPECK * sizes.sum()).sum())


def _of_class(sides: dict[str, list[NDArray[np.bool_]]]) -> dict[str, Any]:
    counts = {side: [parts(mask) for mask in masks] for side, masks in sides.items()}
    areas = {side: np.array([mask.mean() for mask in masks]) for side, masks in sides.items()}
    usual = Counter(counts["real"]).most_common(1)[0][0]
    times = {side: Counter(mask.tobytes() for mask in masks).most_common() for side, masks in sides.items()}
    edges = np.linspace(0, max(float(area.max()) for area in areas.values()) or 1.0, BINS + 1)
    return {
        "parts": usual,
        "as_usual": {side: float(np.mean([count == usual for count in found])) for side, found in counts.items()},
        "empty": {side: float(np.mean(area == 0)) for side, area in areas.items()},
        "areas": {side: {"mean": float(area.mean()), "sd": float(area.std())} for side, area in areas.items()},
        "distance": float(ks_2samp(areas["synthetic"], areas["real"]).statistic),
        "edges": edges.tolist(),
        "histogram": {side: (np.histogram(area, edges)[0] / len(area)).tolist() for side, area in areas.items()},
        "n": {side: len(masks) for side, masks in sides.items()},
        "distinct": {side: len(found) for side, found in times.items()},
        "commonest": {side: found[0][1] / len(sides[side]) for side, found in times.items()},
    }


def _masks(cases: CaseSet) -> Sequence[MaskArray]:
    return [case.mask for case in cases if case.mask is not None] if len(cases.mask_classes) > 1 else []
