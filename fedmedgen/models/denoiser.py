"""The generator's network: an EDM-preconditioned, class-conditional denoiser around a network of the chosen family."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import ModelMixin, UNet2DModel
from torch import Tensor, nn

from fedmedgen.errors import SettingsError
from fedmedgen.models import pipeline
from fedmedgen.models.coefficient_network import CoefficientNetwork
from fedmedgen.models.diffusion_transformer import DiffusionTransformer
from fedmedgen.models.naming import named, numbered
from fedmedgen.settings import GeneratorSettings


@dataclass(frozen=True, kw_only=True)
class DenoiserConfig:
    """What a denoiser must know beside its weights; saved with it."""

    classes: tuple[str, ...]
    mask_classes: tuple[str, ...]  # background first; empty: images alone
    size: tuple[int, int]
    unshuffle: int
    sigma_data: float
    preconditioning: str
    steps: int
    guidance: float


class Denoiser(nn.Module):
    """D(x; sigma, label): the clean image (and mask channels) expected from a noisy one.

    The network is called `unet`, as in saved folders, whatever its family: each is called as `UNet2DModel` is.
    """

    def __init__(self, unet: ModelMixin, config: DenoiserConfig) -> None:
        super().__init__()
        self.unet = unet
        self.config = config

    @property
    def num_classes(self) -> int:
        """Also the label that means "no class"."""
        return len(self.config.classes)

    @property
    def num_channels(self) -> int:
        return 1 + max(0, len(self.config.mask_classes) - 1)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Of what is denoised, for one image."""
        return (self.num_channels, *self.config.size)

    def to_input(self, x: Tensor) -> Tensor:
        """Images and masks as the network works on them."""
        return x

    def to_images(self, x: Tensor) -> Tensor:
        """The way back."""
        return x

    def name_classes(self, classes: Sequence[str], mask_classes: Sequence[str] = ()) -> "Denoiser":
        """Say what the numbers of labels and masks mean; returns the denoiser.

        **Raises** `SettingsError` if their count is not the network's.
        """
        self.config = named(self.config, classes, mask_classes)
        return self

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        """**Shapes** x ``[B, C, H, W]``, sigma ``[B]``, labels ``[B]`` -> ``[B, C, H, W]``."""
        return pipeline.denoised(self.unet, x, sigma, labels, self.spectrum(x), self.config.unshuffle)

    def spectrum(self, x: Tensor) -> Tensor:
        """The power ``[C, H, W]`` that the preconditioning expects of data in the shape of `x`."""
        return pipeline.power(x.shape, self.config.sigma_data, self.config.preconditioning).to(x)


def build_denoiser(
    generator: GeneratorSettings, *, num_classes: int, num_masks: int, size: tuple[int, int], seed: int
) -> Denoiser:
    """A fresh denoiser; `num_masks` counts mask classes less the background (0: images alone).

    **Raises** `SettingsError` if the family can't be built from these settings.

    **Guarantee** The weights depend on the seed alone, and torch's global random state is left as it was.
    """
    family = FAMILIES.get(generator.family)
    if family is None:
        raise SettingsError(f"generator.family={generator.family} is no denoiser; those of {sorted(FAMILIES)} are")
    unshuffle = {"unet": generator.unshuffle, "dit": generator.patch}.get(generator.family, 1)
    channels = (1 + num_masks) * unshuffle**2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = family(generator, size, {"in_channels": channels, "num_class_embeds": num_classes + 1})
    classes, masks = numbered(num_classes, num_masks)
    config = DenoiserConfig(
        classes=classes,
        mask_classes=masks,
        size=(size[0], size[1]),
        unshuffle=unshuffle,
        sigma_data=generator.sigma_data,
        preconditioning=generator.preconditioning,
        steps=generator.sampler_steps,
        guidance=generator.guidance,
    )
    return Denoiser(network, config)


def _unet(generator: GeneratorSettings, _size: tuple[int, int], door: dict[str, int]) -> ModelMixin:
    if any(width % generator.norm_groups for width in generator.channels):
        raise SettingsError(
            f"generator.norm_groups must divide every number of generator.channels {list(generator.channels)};"
            f" got {generator.norm_groups}"
        )
    return UNet2DModel(
        **door,
        out_channels=door["in_channels"],
        down_block_types=tuple("AttnDownBlock2D" if attend else "DownBlock2D" for attend in generator.attention),
        up_block_types=tuple("AttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(generator.attention)),
        block_out_channels=tuple(generator.channels),
        layers_per_block=generator.layers_per_block,
        norm_num_groups=generator.norm_groups,
        attention_head_dim=math.gcd(32, *generator.channels),
        add_attention=any(generator.attention),
    )


def _transformer(generator: GeneratorSettings, _size: tuple[int, int], door: dict[str, int]) -> ModelMixin:
    return DiffusionTransformer(**door, width=generator.width, depth=generator.depth, heads=generator.heads)


def _coefficient_network(generator: GeneratorSettings, size: tuple[int, int], door: dict[str, int]) -> ModelMixin:
    pixels = size[0] * size[1]
    if generator.coefficients > pixels:
        raise SettingsError(
            f"generator.coefficients must be at most the pixels of an image, {pixels}; got {generator.coefficients}"
        )
    if generator.coefficients < pixels and generator.preconditioning != "spectral":
        raise SettingsError(
            "outside its coefficients a generator draws what the preconditioning expects, which is white noise for"
            f" {generator.preconditioning!r}: set generator.preconditioning=spectral"
        )
    return CoefficientNetwork(
        **door,
        coefficients=generator.coefficients,
        size=(size[0], size[1]),
        width=generator.width,
        depth=generator.depth,
        log_sigma_unit=4 / pipeline.NOISE_SCALE,
        sigma_data=generator.sigma_data,
    )


FAMILIES = {"unet": _unet, "dit": _transformer, "coefficients": _coefficient_network}
