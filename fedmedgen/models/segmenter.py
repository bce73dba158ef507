"""The segmenter: the denoiser's own network with a segmentation head, to be fine-tuned end to end."""

import copy
from dataclasses import dataclass, replace

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from fedmedgen.errors import SettingsError
from fedmedgen.models import pipeline
from fedmedgen.models.denoiser import Denoiser


@dataclass(frozen=True, kw_only=True)
class SegmenterConfig:
    """What a segmenter must know beside its weights; saved with it."""

    mask_classes: tuple[str, ...]
    size: tuple[int, int]
    unshuffle: int
    sigma_data: float
    preconditioning: str
    noise_level: float
    fit: str = "squash"  # how pictures are brought to that size, as `data.fit`


class Segmenter(nn.Module):
    """Logits of the mask classes for a radiograph.

    The network is told a small noise level and no class; channels where the denoiser sees masks are zero.

    **Source** Rousseau et al. 2023 (PTDR).
    """

    def __init__(self, unet: UNet2DModel, config: SegmenterConfig) -> None:
        super().__init__()
        self.unet = unet
        self.config = config

    def name_classes(self, mask_classes: tuple[str, ...]) -> "Segmenter":
        """Say what the mask values mean; returns the segmenter."""
        self.config = replace(self.config, mask_classes=tuple(mask_classes))
        return self

    def forward(self, images: Tensor) -> Tensor:
        """**Shapes** images ``[B, 1, H, W]`` -> logits ``[B, M, H, W]``."""
        config = self.config
        data = (config.sigma_data, config.preconditioning)
        return pipeline.segment(self.unet, images, config.noise_level, data, config.unshuffle)


def from_denoiser(
    denoiser: Denoiser, num_mask_classes: int, noise_level: float, seed: int, fit: str = "squash"
) -> Segmenter:
    """All of the denoiser's weights (copied) and a fresh head for `num_mask_classes`, background included.

    **Raises** `SettingsError` if the denoiser's network is no UNet: features of every pixel are what the method needs.
    """
    if not isinstance(denoiser.unet, UNet2DModel):
        raise SettingsError(
            f"a segmenter starts from a UNet; got a {type(denoiser.unet).__name__}:"
            " set generator.family=unet, or segmenter.rounds=0 for no segmenter"
        )
    unet = copy.deepcopy(denoiser.unet)
    outputs = num_mask_classes * denoiser.config.unshuffle**2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = nn.Conv2d(unet.conv_out.in_channels, outputs, kernel_size=3, padding=1)
    unet.conv_out = head.to(denoiser.device)
    unet.register_to_config(out_channels=outputs)
    named = denoiser.config.mask_classes
    config = SegmenterConfig(
        mask_classes=named if len(named) == num_mask_classes else _numbered(num_mask_classes),
        size=denoiser.config.size,
        unshuffle=denoiser.config.unshuffle,
        sigma_data=denoiser.config.sigma_data,
        preconditioning=denoiser.config.preconditioning,
        noise_level=noise_level,
        fit=fit,
    )
    return Segmenter(unet, config)


def _numbered(count: int) -> tuple[str, ...]:
    return ("background", *(f"mask-{value}" for value in range(1, count)))
