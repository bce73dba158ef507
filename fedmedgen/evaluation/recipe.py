"""What both yardsticks share: how a few seeds become mean and sd, which cases take part, how a batch is varied."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedmedgen.data.cases import FloatArray

FEWEST_CASES = 8
SHIFT = 0.08
GAIN = 0.2
OFFSET = 0.2


def mean_sd(values: Sequence[float]) -> dict[str, float] | None:
    """Mean and sd (of the sample; 0 for one value) of the values that are numbers; None if there are none."""
    good = [float(value) for value in values if np.isfinite(value)]
    if not good:
        return None
    return {"mean": float(np.mean(good)), "sd": float(np.std(good, ddof=1)) if len(good) > 1 else 0.0}


def skipped(why: str) -> dict[str, Any]:
    """The result of what could not be measured."""
    return {"skipped": why}


def standardised(images: FloatArray) -> Tensor:
    """Each image with mean 0 and sd 1, so that exposure tells nothing."""
    pixels = torch.from_numpy(images)
    centred = pixels - pixels.mean((1, 2, 3), keepdim=True)
    return centred / centred.std((1, 2, 3), keepdim=True).clamp_min(1e-3)


def balanced(labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Drawing chances that give each class that is there the same share of a batch."""
    counts = np.bincount(labels)
    weights = 1.0 / counts[labels]
    return np.asarray(weights / weights.sum())


def vary(images: Tensor, draw: np.random.Generator) -> Tensor:
    """Images with a brightness and contrast of their own."""
    gain = torch.from_numpy(draw.uniform(1 - GAIN, 1 + GAIN, (len(images), 1, 1, 1)).astype(np.float32))
    offset = torch.from_numpy(draw.uniform(-OFFSET, OFFSET, (len(images), 1, 1, 1)).astype(np.float32))
    return images * gain + offset


def shift(tensor: Tensor, rows: int, columns: int) -> Tensor:
    """All pictures ``[B, …, H, W]`` moved, the edge repeated."""
    height, width = tensor.shape[-2:]
    down = (torch.arange(height) - rows).clamp(0, height - 1)
    right = (torch.arange(width) - columns).clamp(0, width - 1)
    return tensor.index_select(-2, down).index_select(-1, right)


def some_shift(size: tuple[int, int], draw: np.random.Generator) -> tuple[int, int]:
    """A move of at most `SHIFT` of the picture in each direction."""
    rows, columns = (max(1, round(SHIFT * side)) for side in size)
    return int(draw.integers(-rows, rows + 1)), int(draw.integers(-columns, columns + 1))
