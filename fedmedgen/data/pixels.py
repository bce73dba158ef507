"""Pixels of any depth and size to the study's: grey in [-1, 1], resized; masks resized by area."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fedmedgen.data.cases import FloatArray, MaskArray
from fedmedgen.data.rejection import Unusable

LEAST_SIDE = 8
MOST_MEGAPIXELS = 100
WINDOW = (0.5, 99.5)  # percentiles of a picture deeper than 8 bits that become black and white
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def check_size(height: int, width: int) -> None:
    """**Raises** `Unusable` for a picture too small to show anything or too large to be one."""
    if min(height, width) < LEAST_SIDE:
        raise Unusable("picture-too-small", least=LEAST_SIDE, height=height, width=width)
    if height * width > MOST_MEGAPIXELS * 1_000_000:
        raise Unusable("picture-too-large", most=MOST_MEGAPIXELS, height=height, width=width)


def to_grey(pixels: NDArray[np.generic]) -> FloatArray:
    """Brightness in [-1, 1]: 8-bit values by their full range, deeper ones by robust percentiles of the picture.

    **Shapes** ``[H, W]``, ``[H, W, 1]``, or ``[H, W, 3 or 4]`` in colour, to ``[H, W]``.

    **Raises** `Unusable` for a flat picture or one that holds no finite numbers.
    """
    eight_bits = pixels.dtype == np.uint8
    grey = pixels.astype(np.float32)
    if grey.ndim == 3:
        grey = grey[..., 0] if grey.shape[2] < 3 else grey[..., :3] @ _LUMA
    if not np.isfinite(grey).all():
        raise Unusable("picture-not-finite")
    if grey.min() == grey.max():
        raise Unusable("picture-flat")
    low, high = (0.0, 255.0) if eight_bits else _window(grey)
    grey -= low
    grey *= 2 / (high - low)
    grey -= 1
    return np.clip(grey, -1.0, 1.0, out=grey)


def _window(grey: FloatArray) -> tuple[float, float]:
    low, high = (float(value) for value in np.percentile(grey, WINDOW))
    return (low, high) if high > low else (float(grey.min()), float(grey.max()))


def resize(grey: FloatArray, size: tuple[int, int], fit: str) -> FloatArray:
    """The picture ``[H, W]`` at the study's size as ``[1, H, W]``; "pad" keeps the aspect and pads with black."""
    inner, (top, left) = _place((grey.shape[0], grey.shape[1]), size, fit)
    scaled = _scale(grey, inner)
    out = np.full((1, *size), -1.0, np.float32)
    out[0, top : top + inner[0], left : left + inner[1]] = np.clip(scaled, -1.0, 1.0)
    return out


def resize_mask(mask: MaskArray, size: tuple[int, int], fit: str, num_classes: int) -> MaskArray:
    """The mask ``[H, W]`` at the study's size: each value gets the pixels of which it covers most.

    **Guarantee** a value keeps its area, rounded to whole pixels, and at least one pixel; where two values want the
    same pixel, the one that covers less of the picture has it.
    """
    inner, (top, left) = _place((mask.shape[0], mask.shape[1]), size, fit)
    out = np.zeros(size, np.uint8)
    if inner == mask.shape:
        out[top : top + inner[0], left : left + inner[1]] = mask
        return out
    small = np.zeros(inner, np.uint8)
    down, across = _overlap(mask.shape[0], inner[0]), _overlap(mask.shape[1], inner[1])
    present = [value for value in range(1, num_classes) if (mask == value).any()]
    shares = [(value, down @ (mask == value).astype(np.float32) @ across.T) for value in present]
    for value, share in sorted(shares, key=lambda pair: -float(pair[1].sum())):
        count = max(1, round(float(share.sum())))
        small.flat[np.argsort(-share, axis=None, kind="stable")[:count]] = value
    out[top : top + inner[0], left : left + inner[1]] = small
    return out


def _place(source: tuple[int, int], size: tuple[int, int], fit: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """The picture's size inside the study's frame, and its top left corner there."""
    if fit == "squash":
        return size, (0, 0)
    scale = min(size[0] / source[0], size[1] / source[1])
    height = min(size[0], max(1, round(source[0] * scale)))
    width = min(size[1], max(1, round(source[1] * scale)))
    return (height, width), ((size[0] - height) // 2, (size[1] - width) // 2)


def _overlap(source: int, target: int) -> FloatArray:
    """How much of each target pixel each source pixel covers along one side ``[target, source]``; rows sum to 1."""
    edges = np.linspace(0, source, target + 1)
    left = np.maximum(edges[:-1, None], np.arange(source)[None])
    right = np.minimum(edges[1:, None], np.arange(1, source + 1)[None])
    return np.asarray(np.maximum(right - left, 0) * (target / source), np.float32)


def _scale(values: FloatArray, size: tuple[int, int]) -> FloatArray:
    if values.shape == size:
        return values
    picture = Image.fromarray(np.ascontiguousarray(values)).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    return np.asarray(picture, np.float32)


def mask_values(mask: NDArray[Any], num_classes: int) -> MaskArray:
    """Class numbers from a mask file: 0 .. M-1 as they stand, or spread evenly over 0 .. 255 (two classes: 0 and 255).

    Grey edges of a two-class mask are cut at half. A colour mask counts if its channels agree.

    **Raises** `Unusable` for other values.
    """
    flat = mask.max(axis=2) if mask.ndim == 3 else mask
    values = np.unique(flat)
    spread = np.round(np.arange(num_classes) * 255 / (num_classes - 1)).astype(int)
    whole = np.issubdtype(flat.dtype, np.integer) or flat.dtype == bool
    if whole and values.min() >= 0 and values.max() < num_classes:
        return np.asarray(flat, np.uint8)
    if whole and num_classes == 2 and 128 <= values.max() <= 255:
        return np.asarray(flat >= 128, np.uint8)
    if whole and np.isin(values, spread).all():
        return np.asarray(np.searchsorted(spread, flat), np.uint8)
    got = ", ".join(map(str, values[:5])) + ("…" if len(values) > 5 else "")
    expected = f"0 to {num_classes - 1} or {', '.join(map(str, spread))}"
    raise Unusable("mask-values", got=got, expected=expected)
