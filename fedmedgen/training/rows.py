"""Cases as the rows a network trains on; all randomness of a loss (noise levels, noise, dropped labels) is in the rows.

Every random choice is drawn on the CPU, so that rows don't depend on the device.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from fedmedgen.data.cases import Case, FloatArray, MaskArray
from fedmedgen.models import pipeline
from fedmedgen.settings import GeneratorSettings
from fedmedgen.training.variation import varied

Rows = dict[str, Tensor]
DrawRows = Callable[[torch.Generator], Rows]


def encode(cases: Sequence[Case], mask_classes: Sequence[str] = (), *, slope: float = 0.0) -> Tensor:
    """Images, and one channel for each mask class but the background (-1 absent, 1 present, 0 where no mask is known).

    With a `slope` a channel is the signed distance to the mask's edge (Leventon et al. 2000) in pixels over `slope`,
    within [-1, 1]: an average of such shapes is a shape, an average of steps has ghosts of every edge.

    **Shapes** -> ``[B, C, H, W]``
    """
    images = torch.from_numpy(np.stack([case.image for case in cases]))
    if not mask_classes:
        return images
    unknown = np.zeros(cases[0].image.shape[1:], np.uint8)
    masks = torch.from_numpy(np.stack([unknown if case.mask is None else case.mask for case in cases]))
    values = torch.arange(1, len(mask_classes), dtype=torch.uint8)[:, None, None]
    present = masks[:, None] == values
    channels = _distances(present.numpy(), slope) if slope else present.float() * 2 - 1
    return torch.cat([images, channels * _has_mask(cases)[:, None, None, None]], dim=1)


def decode(x: Tensor, mask_classes: Sequence[str] = ()) -> tuple[FloatArray, MaskArray | None]:
    """Images ``[B, 1, H, W]`` in steps of 1/255 of the range, and masks ``[B, H, W]`` if there are mask classes."""
    grey, masks = pipeline.to_pixels(x)
    images = (grey[:, None].astype(np.float32) / np.float32(127.5)) - 1
    return images, masks if mask_classes else None


def choose(cases: Sequence[Case], count: int, generator: torch.Generator) -> list[Case]:
    """At most `count` of the cases, drawn without replacement."""
    if len(cases) <= count:
        return list(cases)
    return [cases[index] for index in torch.randperm(len(cases), generator=generator)[:count].tolist()]


def diffusion_rows(
    cases: Sequence[Case],
    draws: int,
    generator: torch.Generator,
    settings: GeneratorSettings,
    num_classes: int,
    mask_classes: Sequence[str] = (),
) -> Rows:
    """`draws` noisy versions of each case: as `image_rows`, with sigma ``[R]`` and noise ``[R, C, H, W]``."""
    rows = image_rows(cases, draws, generator, settings, num_classes, mask_classes)
    levels = settings.noise_mean + settings.noise_std * torch.randn(len(rows["x"]), generator=generator)
    return {**rows, "sigma": levels.exp(), "noise": torch.randn(rows["x"].shape, generator=generator)}


def coded_rows(
    cases: Sequence[Case],
    draws: int,
    generator: torch.Generator,
    settings: GeneratorSettings,
    num_classes: int,
    mask_classes: Sequence[str] = (),
) -> Rows:
    """Each case `draws` times: as `image_rows`, with noise ``[R, code]``."""
    rows = image_rows(cases, draws, generator, settings, num_classes, mask_classes)
    return {**rows, "noise": torch.randn(len(rows["x"]), settings.code, generator=generator)}


def image_rows(
    cases: Sequence[Case],
    draws: int,
    generator: torch.Generator,
    settings: GeneratorSettings,
    num_classes: int,
    mask_classes: Sequence[str] = (),
) -> Rows:
    """Each case `draws` times: x, weight ``[R, C, 1, 1]`` and label with R = cases x draws.

    A case without a label, and a share `label_dropout` of the rows, has the label `num_classes` (no class); a case
    without a mask weighs nothing in the mask channels.
    """
    masks = mask_classes if settings.with_masks else ()
    x = encode(cases, masks).repeat_interleave(draws, dim=0)
    if settings.flip:
        mirrored = torch.rand(len(x), generator=generator) < 0.5
        x = torch.where(mirrored[:, None, None, None], x.flip(-1), x)
    labels = torch.tensor([num_classes if case.label is None else case.label for case in cases])
    dropped = torch.rand(len(x), generator=generator) < settings.label_dropout
    weight = torch.ones(len(x), x.shape[1], 1, 1)
    weight[:, 1:] = _has_mask(cases).repeat_interleave(draws)[:, None, None, None]
    return {"x": x, "weight": weight, "label": labels.repeat_interleave(draws).masked_fill(dropped, num_classes)}


def encoded_rows(rows: Rows, to_input: Callable[[Tensor], Tensor], generator: torch.Generator) -> Rows:
    """Diffusion rows as a network sees them that works on an encoding: x encoded, noise of its shape.

    An encoding mixes channels, so a row whose mask is unknown weighs nothing at all.
    """
    distinct, place = torch.unique(rows["x"], dim=0, return_inverse=True)  # each image once, however many its draws
    x = to_input(distinct)[place]
    weight = rows["weight"].amin(dim=1, keepdim=True)
    return {**rows, "x": x, "weight": weight, "noise": torch.randn(x.shape, generator=generator)}


def segmentation_rows(cases: Sequence[Case], generator: torch.Generator, *, warp: bool = False) -> Rows:
    """Image ``[B, 1, H, W]`` and mask ``[B, H, W]`` (long) of every case that has a mask.

    Contrast and brightness vary by up to a tenth, as they do between sites; with `warp` position, angle, size and
    gamma vary too.
    """
    known = [case for case in cases if case.mask is not None]
    image = encode(known)
    masks = torch.from_numpy(np.stack([case.mask for case in known if case.mask is not None]))
    if warp:
        return dict(zip(("image", "mask"), varied(image, masks, generator), strict=True))
    gain, shift = (0.2 * torch.rand(2, len(known), 1, 1, 1, generator=generator) - 0.1).unbind()
    return {"image": (image * (1 + gain) + shift).clamp(-1, 1), "mask": masks.long()}


def to_device(rows: Rows, device: torch.device) -> Rows:
    """The same rows on another device."""
    return {name: value.to(device) for name, value in rows.items()}


def _distances(present: NDArray[np.bool_], slope: float) -> Tensor:
    """From the edge, half-way between pixels, positive inside; a plane without an edge is -1 or 1 all over."""
    out = np.where(present, np.float32(1), np.float32(-1))
    for place in np.ndindex(present.shape[:2]):
        inside = present[place]
        if inside.any() and not inside.all():
            distance = distance_transform_edt(inside) - distance_transform_edt(~inside)
            out[place] = np.clip((distance - 0.5 * np.sign(distance)) / slope, -1, 1)
    return torch.from_numpy(out)


def _has_mask(cases: Sequence[Case]) -> Tensor:
    return torch.tensor([float(case.mask is not None) for case in cases])
