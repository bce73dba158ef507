"""The autoencoder of latent diffusion, fitted at the server on public images alone: it costs no privacy."""

import logging
from functools import partial

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional as F

from fedmedgen import devices
from fedmedgen.errors import SettingsError
from fedmedgen.federation import local_round
from fedmedgen.models.latent import LatentDenoiser
from fedmedgen.seeds import seed_of
from fedmedgen.settings import Settings
from fedmedgen.training.checkpoints import load_arrays, save_arrays
from fedmedgen.training.fit import Schedule, fit_ordinary
from fedmedgen.training.rows import Rows
from server.run_store import RunStore

FILE = "autoencoder.safetensors"
logger = logging.getLogger(__name__)


def fit_autoencoder(store: RunStore, denoiser: LatentDenoiser, public: Tensor) -> None:
    """Fit it, and the shift and scale of its latents, once in a run's life; frozen from then on.

    **Raises** `SettingsError` where there are no public images.
    """
    path = store.folder / FILE
    if path.is_file():
        local_round.load_public(denoiser, {name: value.numpy() for name, value in load_arrays(path).items()})
        return
    if not len(public):
        raise SettingsError("generator.family=latent needs public images: set prior.roots or prior.phantoms")
    settings, seed = store.settings, seed_of(store.settings.seed, "autoencoder")
    device = devices.device_of(settings)
    denoiser.to(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        loss = _fit(denoiser, public, settings, seed)
    logger.info("autoencoder: mean loss %.4f over %d steps on public images", loss, settings.autoencoder.steps)
    _normalise(denoiser, public, settings.generator.sigma_data)
    denoiser.to("cpu")
    arrays = local_round.public_arrays(denoiser)
    save_arrays(path, {name: torch.from_numpy(value.copy()) for name, value in arrays.items()})


def _fit(denoiser: LatentDenoiser, public: Tensor, settings: Settings, seed: int) -> float:
    asked = settings.autoencoder
    schedule = Schedule(learning_rate=asked.learning_rate, first_step=0, steps=asked.steps, total_steps=asked.steps)

    def rows(generator: torch.Generator) -> Rows:
        return {"x": public[torch.randint(len(public), (asked.batch_size,), generator=generator)]}

    vae = denoiser.vae.requires_grad_(True)
    loss = partial(autoencoder_loss, kl_weight=asked.kl_weight)
    found = fit_ordinary(vae, loss, rows, schedule=schedule, generator=torch.Generator().manual_seed(seed))
    denoiser.vae.requires_grad_(False)
    return found


def autoencoder_loss(vae: nn.Module, rows: Rows, *, kl_weight: float) -> Tensor:
    """Mean absolute error of what comes back, and a little of the latents' divergence from unit noise; by row.

    **Source** Rombach et al. 2022, without the parts that need another network.
    """
    if not isinstance(vae, AutoencoderKL):
        raise TypeError(f"expected an AutoencoderKL; got {type(vae).__name__}")
    x = rows["x"]
    step: int = 2 ** (len(vae.config.block_out_channels) - 1)
    x = F.pad(x, (0, -x.shape[3] % step, 0, -x.shape[2] % step), mode="replicate")
    latents = vae.encode(x).latent_dist
    error = (vae.decode(latents.sample()).sample - x).abs().mean(dim=(1, 2, 3))
    loss: Tensor = error + kl_weight * latents.kl() / latents.mean[0].numel()
    return loss


def _normalise(denoiser: LatentDenoiser, public: Tensor, deviation: float) -> None:
    """Latents of public images then have, by channel, the mean 0 and the deviation that the denoiser expects."""
    with torch.no_grad():
        denoiser.shift.zero_()
        denoiser.scale.fill_(1.0)
        latents = torch.cat([denoiser.to_input(batch) for batch in torch.split(public, 64)])
        denoiser.shift.copy_(latents.mean(dim=(0, 2, 3)))
        denoiser.scale.copy_(deviation / latents.std(dim=(0, 2, 3)).clamp(min=1e-6))
