"""The pipeline saved with a generator: with torch and diffusers it samples where this package isn't installed."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, ModelMixin
from diffusers.utils import BaseOutput
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

Denoise = Callable[[Tensor, Tensor], Tensor]
SIGMA_MIN, SIGMA_MAX, RHO = 0.002, 80.0, 7.0
NOISE_SCALE = 40.0


def power(shape: torch.Size, sigma_data: float, preconditioning: str) -> Tensor:
    """Expected power ``[C, H, W]`` of each cosine coefficient of an image (channel 0) and of masks.

    "edm": sigma_data^2 at every frequency of every channel. "spectral": falling with the cube of the frequency, as
    radiographs and phantoms alike do, masks a little less; the means over all coefficients are sigma_data^2, and
    four times that for masks, which are -1 or 1 where an image's deviation is about a half.
    """
    channels, height, width = shape[-3:]
    if preconditioning == "edm":
        return torch.full((channels, height, width), sigma_data**2)
    rows, columns = torch.arange(height) / height, torch.arange(width) / width
    distance = rows[:, None] ** 2 + columns**2 + 0.03**2
    image, mask = distance**-1.5, distance**-1.25
    return sigma_data**2 * torch.stack([image / image.mean(), *[4 * mask / mask.mean()] * (channels - 1)])


def cosines(size: int) -> Tensor:
    """The orthonormal cosine transform (DCT-II) as a matrix ``[size, size]``."""
    angle = torch.arange(size)[:, None] * (torch.arange(size) + 0.5) * math.pi / size
    return torch.cat([torch.full((1, size), size**-0.5), angle[1:].cos() * (2 / size) ** 0.5])


def coefficients(sigma: Tensor, spectrum: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """c_skip ``[B, C, H, W]`` of each frequency, c_out and c_in ``[B, C, 1, 1]`` of a noise level.

    EDM's coefficients for data of this power at each frequency, not of equal power at all: c_skip is then the best
    linear denoiser, c_out the error it leaves, and a small network needn't learn to pass fine detail through.

    **Source** Karras et al. 2022, appendix B.6, with the data's variance taken by frequency.
    """
    variance = sigma[:, None, None, None] ** 2
    c_skip = spectrum / (spectrum + variance)
    c_out = (c_skip * variance).mean(dim=(2, 3), keepdim=True).sqrt()
    return c_skip, c_out, (spectrum.mean(dim=(1, 2), keepdim=True) + variance).rsqrt()


def noise_condition(sigma: Tensor) -> Tensor:
    """c_noise = ln(sigma) / 4, stretched for the sines of `UNet2DModel`, whose highest frequency is one radian a unit.

    Unstretched, all training levels fall within two radians and differ in the first few sines only; stretched to
    a DDPM's thousand, neighbouring levels get unrelated embeddings.
    """
    return NOISE_SCALE * sigma.log() / 4


def network(unet: ModelMixin, x: Tensor, sigma: Tensor, labels: Tensor, unshuffle: int) -> Tensor:
    """The network on images of any size it takes: padded, folded into channels, run, unfolded, cropped."""
    height, width = x.shape[-2:]
    step = unshuffle * 2 ** (len(unet.config.get("block_out_channels", [1])) - 1)
    x = F.pad(x, (0, -width % step, 0, -height % step))
    x = F.pixel_unshuffle(x, unshuffle) if unshuffle > 1 else x
    out: Tensor = unet(x, noise_condition(sigma), class_labels=labels, return_dict=False)[0]
    out = F.pixel_shuffle(out, unshuffle) if unshuffle > 1 else out
    return out[..., :height, :width]


def denoised(unet: ModelMixin, x: Tensor, sigma: Tensor, labels: Tensor, spectrum: Tensor, unshuffle: int) -> Tensor:
    """The clean image expected from a noisy one: D(x; sigma) = c_skip x + c_out F(c_in x; c_noise).

    **Shapes** x ``[B, C, H, W]``, sigma ``[B]``, labels ``[B]``; the number after the last class means "no class".

    **Source** Karras et al. 2022, equation 7; c_skip acts on the cosine transform of x.
    """
    c_skip, c_out, c_in = coefficients(sigma, spectrum)
    down, across = cosines(x.shape[2]).to(x), cosines(x.shape[3]).to(x)
    smooth = down.T @ (c_skip * (down @ x @ across.T)) @ across
    return smooth + c_out * network(unet, c_in * x, sigma, labels, unshuffle)


def segment(unet: ModelMixin, images: Tensor, noise_level: float, data: tuple[float, str], unshuffle: int) -> Tensor:
    """Logits ``[B, M, H, W]`` of the denoiser's network with a new head; mask channels at its door are zero."""
    extra = unet.config.in_channels // unshuffle**2 - 1
    x = F.pad(images, (0, 0, 0, 0, 0, extra))
    sigma = torch.full((len(x),), noise_level, device=x.device)
    labels = torch.full((len(x),), unet.config.num_class_embeds - 1, device=x.device)
    c_in = coefficients(sigma, power(x.shape, *data).to(x))[2]
    return network(unet, c_in * x, sigma, labels, unshuffle)


def guided(denoise: Callable[[Tensor, Tensor, Tensor], Tensor], labels: Tensor, guidance: float, empty: int) -> Denoise:
    """Classifier-free guidance: 1 is the plain conditional denoiser, above 1 leans away from the unconditional one.

    **Source** Ho and Salimans 2022, in terms of denoised images.
    """

    def apply(x: Tensor, sigma: Tensor) -> Tensor:
        sigma = sigma.expand(len(x))
        if guidance == 1:
            return denoise(x, sigma, labels)
        both = torch.cat([labels, torch.full_like(labels, empty)])
        with_class, without = denoise(torch.cat([x, x]), torch.cat([sigma, sigma]), both).chunk(2)
        return without + guidance * (with_class - without)

    return apply


def karras_sigmas(
    steps: int, *, sigma_min: float = SIGMA_MIN, sigma_max: float = SIGMA_MAX, rho: float = RHO
) -> Tensor:
    """`steps` falling noise levels and a final zero.

    **Source** Karras et al. 2022, equation 5.
    """
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return torch.cat([(high + ramp * (low - high)) ** rho, torch.zeros(1, dtype=torch.float64)]).float()


def heun(denoise: Denoise, noise: Tensor, sigmas: Tensor) -> Tensor:
    """Deterministic second-order sampling from unit noise.

    **Source** Karras et al. 2022, algorithm 1.
    """
    x = noise * sigmas[0]
    for now, after in pairwise(sigmas):
        slope = (x - denoise(x, now)) / now
        ahead = x + (after - now) * slope
        if after > 0:
            slope = (slope + (ahead - denoise(ahead, after)) / after) / 2
            ahead = x + (after - now) * slope
        x = ahead
    return x


def to_pixels(x: Tensor) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """Grey levels and mask values from channels in [-1, 1]; masks are None where the image is the only channel.

    A pixel belongs to the foreground class whose channel is highest, if that is above zero.
    """
    grey = ((x[:, 0].clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu().numpy()
    if x.shape[1] == 1:
        return grey, None
    height, winner = x[:, 1:].max(dim=1)
    return grey, torch.where(height > 0, winner + 1, 0).to(torch.uint8).cpu().numpy()


class OwnPrecision:
    """A network called with and giving float32, whatever precision its own weights were loaded in."""

    def __init__(self, network: ModelMixin) -> None:
        self.network, self.config = network, network.config

    def __call__(self, x: Tensor, *rest: Tensor, **more: Any) -> tuple[Tensor]:
        return (self.network(x.to(self.network.dtype), *rest, **more)[0].float(),)


@dataclass
class RadiographOutput(BaseOutput):  # type: ignore[misc]
    """Sampled radiographs: PIL images, masks ``[N, H, W]`` (or None) and the label of each."""

    images: list[Image.Image]
    masks: NDArray[np.uint8] | None
    labels: list[str]


class RadiographPipeline(DiffusionPipeline):  # type: ignore[misc]
    """Synthetic radiographs of a class, with masks where the generator draws them."""

    def __init__(
        self, unet: ModelMixin, classes: Any = (), mask_classes: Any = (), size: Any = (64, 64), settings: Any = None
    ) -> None:
        super().__init__()
        self.register_modules(unet=unet)
        self.register_to_config(
            classes=list(classes), mask_classes=list(mask_classes), size=list(size), settings=dict(settings or {})
        )

    @torch.no_grad()
    def __call__(
        self, label: str | Sequence[str] | None = None, num_images: int = 1, seed: int | None = None, **how: float
    ) -> RadiographOutput:
        """Draw `num_images` of each label (of every class if none is given); `steps` and `guidance` may be set.

        **Raises** `ValueError` for a label or an option that the generator doesn't know.
        """
        known = list(self.config.classes) or [""]
        wanted = known if label is None else [label] if isinstance(label, str) else list(label)
        if unknown := set(wanted) - set(known):
            raise ValueError(f"label must be of {known}; got {sorted(unknown)}")
        if strange := set(how) - {"steps", "guidance"}:
            raise ValueError(f"options are steps and guidance; got {sorted(strange)}")
        names = [name for name in wanted for _ in range(num_images)]
        images, masks = to_pixels(self._sample([known.index(name) for name in names], seed, **how))
        return RadiographOutput(images=[Image.fromarray(image, "L") for image in images], masks=masks, labels=names)

    def _sample(
        self, labels: list[int], seed: int | None, steps: float | None = None, guidance: float | None = None
    ) -> Tensor:
        kept = self.config.settings
        fold = int(kept["unshuffle"])
        generator = torch.Generator()
        generator.seed() if seed is None else generator.manual_seed(seed)
        noise = torch.randn((len(labels), *self._noise_shape()), generator=generator).to(self.device)
        spectrum = power(noise.shape, float(kept["sigma_data"]), kept["preconditioning"]).to(noise)
        denoise = guided(
            lambda x, sigma, label: denoised(OwnPrecision(self.unet), x, sigma, label, spectrum, fold),
            torch.tensor(labels, device=self.device),
            float(kept["guidance"] if guidance is None else guidance),
            len(self.config.classes),
        )
        return self._to_images(heun(denoise, noise, karras_sigmas(int(steps or kept["steps"])).to(self.device)))

    def _noise_shape(self) -> tuple[int, ...]:
        return (self.unet.config.in_channels // int(self.config.settings["unshuffle"]) ** 2, *self.config.size)

    def _to_images(self, x: Tensor) -> Tensor:
        return x


class LogitsPipeline(DiffusionPipeline):  # type: ignore[misc]
    """The network with a segmentation head, and what it must know beside its weights."""

    def __init__(self, unet: ModelMixin, mask_classes: Any = (), size: Any = (64, 64), settings: Any = None) -> None:
        super().__init__()
        self.register_modules(unet=unet)
        self.register_to_config(mask_classes=list(mask_classes), size=list(size), settings=dict(settings or {}))

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """**Shapes** images ``[B, 1, H, W]`` in [-1, 1] -> ``[B, M, H, W]``."""
        kept = self.config.settings
        data = (kept["sigma_data"], kept["preconditioning"])
        return segment(
            OwnPrecision(self.unet), images.to(self.device), kept["noise_level"], data, int(kept["unshuffle"])
        )
