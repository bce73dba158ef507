"""A public basis for images: the coefficients whose statistics a site may release, and how many of them pay."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedmedgen.errors import SettingsError
from fedmedgen.models import pipeline
from fedmedgen.schema import require

POWER = 0.0
FLATTEST = 1e-3  # deviation that an image is taken to have at least
PAYING = 1.5
PAYING_FEATURES = 1.0  # whose covariance is inverted, so that its small eigenvalues must be right, too


@dataclass(frozen=True, eq=False)
class Basis:
    """An affine map between standardised images and a few coefficients, made of public images alone.

    **Shapes** mean ``[C, H, W]``, components ``[d, C, H, W]`` orthonormal, scale ``[d]``, all float32
    """

    mean: Tensor
    components: Tensor
    scale: Tensor

    @property
    def dimension(self) -> int:
        return len(self.scale)

    def coefficients(self, x: Tensor) -> Tensor:
        """z ``[B, d]`` of images ``[B, C, H, W]``; over public images E|z|^2 = 1."""
        return (x - self.mean).flatten(1) @ self.components.flatten(1).T / self.scale

    def images(self, z: Tensor) -> Tensor:
        """Images ``[B, C, H, W]`` of coefficients ``[B, d]``."""
        return self.mean + ((z * self.scale) @ self.components.flatten(1)).reshape(-1, *self.mean.shape)

    def residual(self, x: Tensor) -> Tensor:
        """What of the images the basis doesn't span."""
        return x - self.images(self.coefficients(x))

    def to_arrays(self) -> dict[str, NDArray[np.float32]]:
        """As sent to sites."""
        return {f"basis.{name}": getattr(self, name).numpy() for name in ("mean", "components", "scale")}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.float32]]) -> "Basis":
        """The basis that was sent.

        **Raises** `SettingsError` if the shapes don't fit together.
        """
        mean, components, scale = (
            torch.from_numpy(np.array(arrays[f"basis.{name}"], np.float32)) for name in ("mean", "components", "scale")
        )
        good = mean.ndim == 3 and scale.ndim == 1 and components.shape == (len(scale), *mean.shape)
        require(good, "basis", [list(part.shape) for part in (mean, components, scale)], "[C, H, W], [d, C, H, W], [d]")
        return cls(mean, components, scale)


def standardised(x: Tensor) -> tuple[Tensor, Tensor]:
    """Images whose first channel has mean 0 and deviation 1, and the exposure ``[B, 2]`` that was taken out.

    How bright and hard a film is says more of the machine than of the patient, and is most of an image's variance: what
    a patient may add to a release is better spent on the rest. Mask channels stay as they are.

    **Shapes** x ``[B, C, H, W]``
    """
    grey = x[:, :1]
    centre = grey.mean(dim=(2, 3), keepdim=True)
    spread = (grey - centre).square().mean(dim=(2, 3), keepdim=True).sqrt().clamp(min=FLATTEST)
    return torch.cat([(grey - centre) / spread, x[:, 1:]], dim=1), torch.cat([centre, spread], dim=1)[:, :, 0, 0]


def pca(public: Tensor, dimension: int, *, power: float = POWER) -> Basis:
    """The leading principal components of public images ``[B, C, H, W]``, each scaled by its deviation to `power`.

    0 leaves the coefficients' own deviations, and the noise of a release, equal in all coefficients, is then white in
    the image; 1 makes them equal, and fine detail as noisy, for its size, as the coarse.

    **Raises** `SettingsError` if the images don't span so many components.
    """
    mean = public.mean(dim=0)
    rows = (public - mean).flatten(1).to(torch.float64)
    many = len(rows) > rows.shape[1]
    values, vectors = torch.linalg.eigh((rows.T @ rows if many else rows @ rows.T) / len(rows))
    rank = int((values > values[-1] * 1e-9).sum())
    require(1 <= dimension <= rank, "statistics.dimension", dimension, f"from 1 to {rank}, what public images span")
    leading = vectors[:, -dimension:].flip(1)
    components = leading.T if many else torch.nn.functional.normalize(leading.T @ rows, dim=1)
    return _scaled(mean, components, values[-dimension:].flip(0).sqrt(), power)


def cosine(
    size: tuple[int, int], channels: int, dimension: int, public: Tensor | None = None, *, power: float = POWER
) -> Basis:
    """The cosine waves of lowest frequency in every channel; their deviations are of `public` images, where given.

    **Raises** `SettingsError` if there are fewer waves than `dimension`.
    """
    height, width = size
    most = channels * height * width
    require(1 <= dimension <= most, "statistics.dimension", dimension, f"from 1 to {most}, the waves there are")
    distance = (torch.arange(height) / height)[:, None] ** 2 + (torch.arange(width) / width) ** 2
    order = distance.expand(channels, -1, -1).permute(1, 2, 0).flatten().argsort(stable=True)[:dimension]
    row, column, channel = torch.unravel_index(order, (height, width, channels))
    waves = pipeline.cosines(height)[row][:, :, None] * pipeline.cosines(width)[column][:, None, :]
    components = torch.zeros(dimension, channels, height, width)
    components[torch.arange(dimension), channel] = waves
    if public is None:
        spectrum = pipeline.power(components.shape, 0.5, "spectral")
        return _scaled(torch.zeros(components.shape[1:]), components, spectrum[channel, row, column].sqrt(), power)
    mean = public.mean(dim=0)
    deviations = ((public - mean).flatten(1) @ components.flatten(1).T).square().mean(dim=0).sqrt()
    return _scaled(mean, components, deviations.clamp(min=float(deviations.max()) * 1e-4), power)


def dimension_for(noise_multiplier: float, patients: int, sites: int, limit: int, *, paying: float = PAYING) -> int:
    """How many to release: `paying` (1.5) sqrt(patients / (noise_multiplier sqrt(sites))), from 1 to `limit`.

    The mean over all `patients` carries noise of deviation tau = noise_multiplier sqrt(sites) / patients in every
    entry (clip 1, each site its own noise). Over the d (d + 1) / 2 entries of a second-moment block that is noise of
    Frobenius norm about tau d / sqrt(2), and no eigenvalue moves farther (Hoffman and Wielandt). The signal, of
    trace near 1, has a mean eigenvalue of about 1 / d. Both are equal near d = tau ** -0.5; half as many again paid on
    lungs and phantoms, since the projection to a valid covariance takes most of the noise in weak directions out. Only
    public numbers enter. Four sites of 1177 patients give 96 at noise 0.57 (epsilon 10) and 36 at 3.9 (epsilon 1).

    **Raises** `SettingsError` for a number out of range.
    """
    require(math.isfinite(noise_multiplier) and noise_multiplier >= 0, "noise", noise_multiplier, "at least 0")
    require(patients >= 1 and sites >= 1, "patients and sites", (patients, sites), "at least 1")
    require(limit >= 1, "the limit of the dimension", limit, "at least 1")
    if noise_multiplier == 0:
        return limit
    return max(1, math.floor(min(limit, paying * math.sqrt(patients / (noise_multiplier * math.sqrt(sites))))))


def _scaled(mean: Tensor, components: Tensor, deviations: Tensor, power: float) -> Basis:
    """With scales in proportion to deviation ** power such that E|z|^2 = 1."""
    if not bool((deviations > 0).all()):
        raise SettingsError("public images must vary along every component of the basis: add images or lower dimension")
    scale = deviations**power
    scale = scale * (deviations / scale).square().sum().sqrt()
    return Basis(mean.float(), components.reshape(-1, *mean.shape).float(), scale.float())
