"""From a radiograph of any size to its mask of the same size, and what the mask measures.

The network sees what it saw in training: the picture fitted to its frame by `data.pixels.resize`. Its logits are cut
to where the picture lies in that frame and spread over the picture's own pixels before any pixel gets a class, so
that outlines follow the logits and not the frame's coarse pixels.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn.functional import interpolate

from fedmedgen.data.cases import FloatArray, MaskArray
from fedmedgen.data.pixels import resize

TOUCHING = np.ones((3, 3), bool)  # pixels that meet at a corner are of one component


@torch.inference_mode()
def mask_of(network: Callable[[Tensor], Tensor], grey: FloatArray, frame: tuple[int, int], fit: str) -> MaskArray:
    """The mask ``[H, W]`` of a radiograph ``[H, W]`` in [-1, 1].

    **Shapes** network: images ``[1, 1, *frame]`` -> logits ``[1, M, *frame]``.
    """
    image = torch.from_numpy(resize(grey, frame, fit))[None]
    return unfitted(network(image)[0].float().cpu(), (grey.shape[0], grey.shape[1]), fit)


def unfitted(logits: Tensor, size: tuple[int, int], fit: str) -> MaskArray:
    """The likeliest class of each of the picture's own pixels, from logits in the network's frame.

    **Shapes** logits ``[M, h, w]`` -> ``[H, W]`` = `size`, values 0 .. M - 1; one class's logits are spread at a time.
    """
    rows, columns = inside((logits.shape[1], logits.shape[2]), size, fit)
    mask = np.zeros(size, np.uint8)
    best = torch.full(size, -torch.inf)
    for value, plane in enumerate(logits[:, rows, columns]):
        spread = interpolate(plane[None, None], size, mode="bilinear")[0, 0]
        mask[(spread > best).numpy()] = value
        best = torch.maximum(best, spread)
    return mask


def inside(frame: tuple[int, int], size: tuple[int, int], fit: str) -> tuple[slice, slice]:
    """Rows and columns of the frame that a picture of this size fills: a white picture is fitted and looked for."""
    white = resize(np.ones(size, np.float32), frame, fit)[0] > 0
    rows, columns = np.flatnonzero(white.any(axis=1)), np.flatnonzero(white.any(axis=0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def measures(mask: MaskArray, mask_classes: Sequence[str]) -> dict[str, float | int]:
    """Of each class but the background NAME_share, its share of the picture's area, and NAME_components, its pieces."""
    found: dict[str, float | int] = {}
    for value, name in enumerate(mask_classes[1:], start=1):
        layer = mask == value
        found[f"{name}_share"] = round(float(layer.mean()), 6)
        found[f"{name}_components"] = int(ndimage.label(layer, TOUCHING)[1])
    return found
