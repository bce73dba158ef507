"""Settings of the generator: its family, its network, and how it is trained and sampled."""

from dataclasses import dataclass
from typing import Literal

from fedmedgen.schema import positive, require


@dataclass(frozen=True, kw_only=True)
class GeneratorSettings:
    """The class-conditional generator and how a site trains it."""

    family: Literal["unet", "dit", "coefficients", "latent", "moments", "vae", "gan"] = "unet"  # moments: no network
    trainable: Literal["full", "lora", "attention", "norms"] = "full"  # of the network, at sites; the rest is public
    rank: int = 4  # of an adapter's weights (lora)
    with_masks: bool = True
    unshuffle: int = 2  # pixels folded into channels at the door of the network
    channels: tuple[int, ...] = (64, 96, 128)
    attention: tuple[bool, ...] = (False, False, True)  # by level
    layers_per_block: int = 1
    norm_groups: int = 8
    width: int = 64  # of a token (dit), a hidden layer (coefficients), a level's channels (vae, gan)
    depth: int = 4  # blocks of the same
    patch: int = 4  # pixels along the side of a token, dit
    heads: int = 4  # of attention, dit
    coefficients: int = 100  # of each channel, the lowest frequencies (coefficients)
    code: int = 64  # numbers that an image is drawn from (vae, gan)
    decoder_std: float = 0.15  # of a pixel around what the decoder draws, public: less is sharper and less smooth (vae)
    decoder_steps: int = 4  # at the server after each round (gan)
    decoder_rate: float = 1e-3  # their learning rate; `learning_rate` is the critic's
    sigma_data: float = 0.5
    preconditioning: Literal["edm", "spectral"] = "edm"  # what the skip past the network expects of the data
    noise_mean: float = -1.2  # of ln sigma in training (Karras et al. 2022)
    noise_std: float = 1.2
    label_dropout: float = 0.1
    local_steps: int = 100  # optimiser steps a round, without privacy
    batch_size: int = 32  # without privacy
    learning_rate: float = 1e-3
    decay: Literal["constant", "cosine"] = "cosine"  # of the learning rate over all steps of all rounds
    images_per_patient: int = 4  # m, at most, of each patient drawn
    ema_decay: float = 0.5  # a round, at the server
    flip: bool = False  # mirror half of the images in training
    sampler: Literal["heun", "stochastic", "dpmpp"] = "heun"
    sampler_steps: int = 18
    guidance: float = 1.0

    def __post_init__(self) -> None:
        require(len(self.attention) == len(self.channels), "generator.attention", self.attention, "one word a level")
        require(self.unshuffle in (1, 2, 4), "generator.unshuffle", self.unshuffle, "1, 2 or 4")
        require(self.patch in (1, 2, 4, 8), "generator.patch", self.patch, "1, 2, 4 or 8")
        require(0 <= self.label_dropout < 1, "generator.label_dropout", self.label_dropout, "from 0 to below 1")
        require(0 <= self.ema_decay < 1, "generator.ema_decay", self.ema_decay, "from 0 to below 1")
        positive("generator", self, "sigma_data", "noise_std", "local_steps", "batch_size", "learning_rate")
        positive("generator", self, "images_per_patient", "sampler_steps", "norm_groups", "depth", "heads", "rank")
        positive("generator", self, "layers_per_block")
        require(
            len(self.channels) > 0 and min(self.channels) > 0,
            "generator.channels",
            self.channels,
            "above 0, one a level",
        )
        drawn_in_steps = self.family not in ("vae", "gan", "moments")
        untaught = self.guidance != 1 and not (drawn_in_steps and self.label_dropout > 0)
        require(not untaught, "generator.guidance", self.guidance, "1 without label_dropout or steps of denoising")
        positive("generator", self, "decoder_std", "decoder_steps", "decoder_rate")
        require(self.code >= 4 and self.code % 4 == 0, "generator.code", self.code, "a multiple of 4")
        require(self.width >= 16 and self.width % 16 == 0, "generator.width", self.width, "a multiple of 16")
        require(self.width % (4 * self.heads) == 0, "generator.heads", self.heads, "4 x heads a divisor of the width")
        require(
            self.coefficients >= 4 and self.coefficients % 4 == 0, "generator.coefficients", self.coefficients,
            "a multiple of 4",
        )  # fmt: skip

    @property
    def whole(self) -> bool:
        """Whether all weights are trained at the sites, by nothing but the gradient of a loss of their cases."""
        return self.trainable == "full" and self.family not in ("latent", "gan")
