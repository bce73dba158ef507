"""The families of generators that are trained in rounds: how one is built, what it trains on, and by which loss."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from fedmedgen.errors import SettingsError
from fedmedgen.models.denoiser import build_denoiser
from fedmedgen.models.generators import Trained
from fedmedgen.models.one_step import build_one_step
from fedmedgen.settings import GeneratorSettings
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


def family_of(generator: GeneratorSettings) -> Family:
    """**Raises** `SettingsError` for the family that isn't trained in rounds."""
    family = FAMILIES.get(generator.family)
    if family is None:
        raise SettingsError(f"generator.family={generator.family} has no network; those of {sorted(FAMILIES)} have one")
    return family


DIFFUSION = Family(build=build_denoiser, rows=diffusion_rows, loss=diffusion_loss)
FAMILIES = {
    "unet": DIFFUSION,
    "dit": DIFFUSION,
    "coefficients": DIFFUSION,
    "vae": Family(build=build_one_step, rows=coded_rows, loss=elbo_loss),
}
