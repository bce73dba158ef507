"""The families of generators that are trained in rounds: how one is built, what it trains on, and by which loss."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fedmedgen.errors import SettingsError
from fedmedgen.models.denoiser import build_denoiser
from fedmedgen.models.generators import Trained
from fedmedgen.models.latent import build_latent
from fedmedgen.models.one_step import build_one_step
from fedmedgen.settings import GeneratorSettings, Settings
from fedmedgen.training.adversarial import (
    DecoderTraining,
    critic_loss,
    fakes_beside,
    fit_pair,
    pair_rows,
    real_loss,
)
from fedmedgen.training.fit import fit_ordinary
from fedmedgen.training.losses import diffusion_loss, elbo_loss
from fedmedgen.training.rows import Rows, coded_rows, diffusion_rows

Loss = Callable[[nn.Module, Rows], Tensor]


@dataclass(frozen=True, kw_only=True)
class Family:
    """One kind of generator.

    `build(settings, num_classes=, num_masks=, size=, seed=)` is the network with its initial weights; `rows(cases,
    draws, generator, settings, num_classes, mask_classes)` what it trains on; `loss` its loss by row.
    """

    build: Callable[..., Trained]
    rows: Callable[..., Rows]
    loss: Loss
    fit: Callable[..., float] = fit_ordinary  # at the server, on images that are no patient's
    patients_loss: Loss | None = None  # under privacy, where `loss` has a term too in which no patient is
    beside: Callable[..., Callable[[], list[Tensor]]] | None = None  # the gradient of that term, step by step
    server_training: type[DecoderTraining] | None = None  # of the public arrays, after each round


def family_of(generator: GeneratorSettings) -> Family:
    """**Raises** `SettingsError` for the family that isn't trained in rounds."""
    family = FAMILIES.get(generator.family)
    if family is None:
        raise SettingsError(f"generator.family={generator.family} has no network; those of {sorted(FAMILIES)} have one")
    return family


def _of_generator(build: Callable[..., Trained]) -> Callable[..., Trained]:
    """What is built from the generator's settings alone."""
    return lambda settings, **door: build(settings.generator, **door)


def _latent(settings: Settings, **door: Any) -> Trained:
    return build_latent(settings.generator, settings.autoencoder, **door)


DIFFUSION = Family(build=_of_generator(build_denoiser), rows=diffusion_rows, loss=diffusion_loss)
FAMILIES = {
    "unet": DIFFUSION,
    "dit": DIFFUSION,
    "coefficients": DIFFUSION,
    "latent": Family(build=_latent, rows=diffusion_rows, loss=diffusion_loss),
    "vae": Family(build=_of_generator(build_one_step), rows=coded_rows, loss=elbo_loss),
    "gan": Family(
        build=_of_generator(build_one_step), rows=pair_rows, loss=critic_loss, fit=fit_pair,
        patients_loss=real_loss, beside=fakes_beside, server_training=DecoderTraining,
    ),
}  # fmt: skip
