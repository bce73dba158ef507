"""Radiographs and their masks as another positioning and another machine would have made them."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fedmedgen.data.cases import Case

ANGLE = 10.0  # degrees, at most
SCALE = 0.12
SHIFT = 0.08  # of a side
GAIN = 0.25
OFFSET = 0.2
GAMMA = 0.35  # of its logarithm


def varied(images: Tensor, masks: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Each image turned, sized, moved and exposed by draws of its own, its mask moved with it; edges are repeated.

    **Shapes** images ``[B, 1, H, W]`` in [-1, 1], masks ``[B, H, W]`` -> the same; masks come back as long
    """
    angle, size, across, down, gain, offset, gamma = 2 * torch.rand(7, len(images), generator=generator) - 1
    height, width = images.shape[-2:]
    turn, scale = angle * math.radians(ANGLE), torch.exp(size * SCALE)
    cosine, sine, aspect = turn.cos() * scale, turn.sin() * scale, height / width
    rows = (
        torch.stack([cosine, -sine * aspect, 2 * SHIFT * across], 1),
        torch.stack([sine / aspect, cosine, 2 * SHIFT * down], 1),
    )
    places = F.affine_grid(torch.stack(rows, 1), [len(images), 1, height, width], align_corners=False)
    moved = F.grid_sample(images, places, padding_mode="border", align_corners=False)
    names = F.grid_sample(masks[:, None].float(), places, mode="nearest", padding_mode="border", align_corners=False)

    def each(values: Tensor) -> Tensor:
        return values[:, None, None, None]

    exposed = ((moved.clamp(-1, 1) + 1) / 2) ** torch.exp(GAMMA * each(gamma)) * 2 - 1
    return (exposed * (1 + GAIN * each(gain)) + OFFSET * each(offset)).clamp(-1, 1), names[:, 0].long()


def varied_cases(cases: Sequence[Case], seed: int) -> list[Case]:
    """Each case as `varied` has it, under its own name; a case without a mask stays without one."""
    if not cases:
        return []
    images = torch.from_numpy(np.stack([case.image for case in cases]))
    blank = np.zeros(cases[0].image.shape[1:], np.uint8)
    masks = torch.from_numpy(np.stack([blank if case.mask is None else case.mask for case in cases]))
    moved, names = varied(images, masks, torch.Generator().manual_seed(seed))
    return [
        replace(case, image=image, mask=None if case.mask is None else mask)
        for case, image, mask in zip(cases, moved.numpy(), names.to(torch.uint8).numpy(), strict=True)
    ]
