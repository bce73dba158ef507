"""A radiograph in grey under its mask: a thin veil of colour for each class and a firm line around it."""

import numpy as np
from scipy.ndimage import maximum_filter, minimum_filter

from fedmedgen.data.cases import FloatArray, MaskArray
from fedmedgen.emission.writing import grey

COLOURS = {
    "cyan": (34, 184, 207),
    "orange": (255, 146, 43),
    "pink": (230, 73, 128),
    "green": (148, 216, 45),
    "violet": (204, 93, 232),
}
VEIL = 0.12  # share of the colour inside; what lies below must stay readable
LINES_ACROSS = 400  # lines that would fill the picture's shorter side


def overlay(picture: FloatArray, mask: MaskArray) -> MaskArray:
    """The picture ``[H, W]`` in [-1, 1] and its mask ``[H, W]`` as colours ``[H, W, 3]``; the line lies inside."""
    drawn = np.repeat(grey(picture[None])[..., None], 3, axis=2)
    palette = np.array(list(COLOURS.values()), np.float32)
    marked = mask > 0
    colours = palette[(mask[marked].astype(int) - 1) % len(palette)]
    share = np.where(_lines(mask)[marked], 1.0, VEIL).astype(np.float32)[:, None]
    drawn[marked] = np.rint(drawn[marked] * (1 - share) + colours * share).astype(np.uint8)
    return drawn


def colour_of(value: int) -> str:
    """The word for the colour of a mask class, 1 for the first that is no background; after the last, the first."""
    return list(COLOURS)[(value - 1) % len(COLOURS)]


def _lines(mask: MaskArray) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Pixels near another class; where the mask leaves the picture there is no line."""
    width = max(1, round(min(mask.shape) / LINES_ACROSS))
    low, high = (near(mask, size=2 * width + 1, mode="nearest") for near in (minimum_filter, maximum_filter))
    return np.asarray(low != high)
