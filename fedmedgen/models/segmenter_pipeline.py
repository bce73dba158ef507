"""The pipeline saved with a segmenter, beside the `pipeline.py` that it builds on."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from .pipeline import LogitsPipeline  # relative: so diffusers finds it beside this file

WINDOW = (0.5, 99.5)  # percentiles of a picture deeper than 8 bits that become black and white
FloatArray = NDArray[np.float32]


def to_grey(picture: Image.Image) -> FloatArray:
    """Brightness ``[H, W]`` in [-1, 1], as sites read theirs: deeper than 8 bits by percentiles of the picture.

    Give no picture that Pillow spoils: of colour of 16 bits it keeps 8, and deep grey whose zero is white (TIFF) it
    leaves a negative.
    """
    if picture.mode != "F" and not picture.mode.startswith("I"):
        return np.asarray(picture.convert("L"), np.float32) / np.float32(127.5) - 1
    grey = np.asarray(picture).astype(np.float32)
    low, high = np.percentile(grey, WINDOW)
    if high <= low:
        low, high = grey.min(), max(grey.max(), grey.min() + 1)
    return np.asarray(np.clip(2 * (grey - low) / (high - low) - 1, -1, 1), np.float32)


def fitted(grey: FloatArray, size: Sequence[int], fit: str) -> FloatArray:
    """The picture ``[H, W]`` as ``[1, *size]``; "pad" keeps its aspect, in the middle, and pads with black."""
    scale = min(frame / side for frame, side in zip(size, grey.shape, strict=True))
    inner = [min(frame, max(1, round(side * scale))) for frame, side in zip(size, grey.shape, strict=True)]
    height, width = size if fit == "squash" else inner
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    out = np.full((1, *size), -1, np.float32)
    scaled = Image.fromarray(grey).resize((width, height), Image.Resampling.BICUBIC)
    out[0, top : top + height, left : left + width] = np.clip(np.asarray(scaled), -1, 1)
    return out


class SegmenterPipeline(LogitsPipeline):
    """Masks for radiographs."""

    def __call__(self, images: Sequence[Image.Image] | Tensor) -> NDArray[np.uint8]:
        """Mask values ``[B, H, W]`` for PIL images of any depth and size, or a tensor ``[B, 1, H, W]`` in [-1, 1].

        Masks of images have the index's size and lie as its fit says: "squash" over the whole, "pad" over the middle.
        """
        if not isinstance(images, Tensor):
            size, fit = self.config.size, self.config.settings.get("fit", "squash")
            images = torch.from_numpy(np.stack([fitted(to_grey(picture), size, fit) for picture in images]))
        masks: NDArray[np.uint8] = self.logits(images).argmax(dim=1).to(torch.uint8).cpu().numpy()
        return masks
