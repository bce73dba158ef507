"""Latent diffusion: the denoiser works on what a frozen, public autoencoder makes of images and masks.

**Source** Rombach et al. 2022.
"""

from dataclasses import replace

import torch
from diffusers import AutoencoderKL, ModelMixin
from torch import Tensor, nn

from fedmedgen.errors import SettingsError
from fedmedgen.models import latent_pipeline
from fedmedgen.models.denoiser import Denoiser, DenoiserConfig, build_denoiser
from fedmedgen.settings import AutoencoderSettings, GeneratorSettings


class LatentDenoiser(Denoiser):
    """A denoiser of latents; `config.size` and the channels of masks are those of images, as in other families.

    The autoencoder and the public `shift` and `scale` of its latents, by channel, are frozen: no site trains them.
    """

    def __init__(self, unet: ModelMixin, config: DenoiserConfig, vae: AutoencoderKL) -> None:
        super().__init__(unet, config)
        self.vae = vae.requires_grad_(False)
        channels = vae.config.latent_channels
        self.shift = nn.Parameter(torch.zeros(channels), requires_grad=False)
        self.scale = nn.Parameter(torch.ones(channels), requires_grad=False)

    @property
    def noise_shape(self) -> tuple[int, ...]:
        return latent_pipeline.shape_of(self.vae, self.config.size)

    @torch.no_grad()
    def to_input(self, x: Tensor) -> Tensor:
        """**Shapes** images and masks ``[B, C, H, W]`` -> latents ``[B, L, h, w]``; each row by itself."""
        return latent_pipeline.encoded(self.vae, x.to(self.device), self.shift, self.scale).to(x.device)

    @torch.no_grad()
    def to_images(self, latents: Tensor) -> Tensor:
        """**Shapes** latents ``[B, L, h, w]`` -> images and masks ``[B, C, H, W]``."""
        height, width = self.config.size
        return latent_pipeline.decoded(self.vae, latents, self.shift, self.scale)[..., :height, :width]


def build_latent(
    generator: GeneratorSettings, autoencoder: AutoencoderSettings, *,
    num_classes: int, num_masks: int, size: tuple[int, int], seed: int,
) -> LatentDenoiser:  # fmt: skip
    """A fresh denoiser of latents, and a fresh autoencoder to be fitted on public images; else as `build_denoiser`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = _autoencoder(autoencoder, 1 + num_masks)
    inside = replace(generator, family="unet", unshuffle=1, preconditioning="edm")
    channels, height, width = latent_pipeline.shape_of(vae, size)
    denoiser = build_denoiser(
        inside, num_classes=num_classes, num_masks=channels - 1, size=(height, width), seed=seed
    )  # fmt: skip
    named = ("background", *(f"mask-{value + 1}" for value in range(num_masks))) if num_masks else ()
    return LatentDenoiser(denoiser.unet, replace(denoiser.config, size=size, mask_classes=named), vae)


def _autoencoder(settings: AutoencoderSettings, channels: int) -> AutoencoderKL:
    if any(width % settings.norm_groups for width in settings.channels):
        raise SettingsError(
            f"autoencoder.norm_groups must divide every number of autoencoder.channels {list(settings.channels)};"
            f" got {settings.norm_groups}"
        )
    levels = len(settings.channels)
    return AutoencoderKL(
        in_channels=channels,
        out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(settings.channels),
        layers_per_block=1,
        latent_channels=settings.latent_channels,
        norm_num_groups=settings.norm_groups,
        mid_block_add_attention=False,
    )
