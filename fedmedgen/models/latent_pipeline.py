"""The pipeline saved with a latent generator, beside the `pipeline.py` that it builds on."""

from typing import Any

import torch
from diffusers import AutoencoderKL, ModelMixin
from torch import Tensor
from torch.nn import functional as F

from .pipeline import RadiographPipeline  # relative: so diffusers finds it beside this file


def shape_of(vae: AutoencoderKL, size: Any) -> tuple[int, int, int]:
    """Channels, rows and columns of the latents of an image; its sides are padded to a multiple of the factor."""
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    return vae.config.latent_channels, -(-size[0] // factor), -(-size[1] // factor)


def encoded(vae: AutoencoderKL, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Latents of about the mean zero and the deviation that the denoiser expects."""
    factor, (height, width) = 2 ** (len(vae.config.block_out_channels) - 1), x.shape[-2:]
    x = F.pad(x, (0, -width % factor, 0, -height % factor), mode="replicate")
    latents: Tensor = vae.encode(x).latent_dist.mode()
    return (latents - shift[:, None, None]) * scale[:, None, None]


def decoded(vae: AutoencoderKL, latents: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Images and masks in [-1, 1], padding included."""
    x: Tensor = vae.decode((latents / scale[:, None, None] + shift[:, None, None]).to(vae.dtype)).sample
    return x.float().clamp(-1, 1)


class LatentRadiographPipeline(RadiographPipeline):
    """Synthetic radiographs of a class, drawn as latents and decoded."""

    def __init__(
        self, unet: ModelMixin, vae: AutoencoderKL, classes: Any = (), mask_classes: Any = (), size: Any = (64, 64),
        settings: Any = None,
    ) -> None:  # fmt: skip
        super().__init__(unet, classes, mask_classes, size, settings)
        self.register_modules(vae=vae)

    def _noise_shape(self) -> tuple[int, ...]:
        return shape_of(self.vae, self.config.size)

    def _to_images(self, x: Tensor) -> Tensor:
        shift, scale = (torch.tensor(self.config.settings[name], device=x.device) for name in ("shift", "scale"))
        height, width = self.config.size
        return decoded(self.vae, x, shift, scale)[..., :height, :width]
