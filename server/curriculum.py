"""The generator's first lessons, at the server: public images, samples of the release. No site is asked."""

import logging
from collections.abc import Sequence

import torch

from fedmedgen.data.cases import Case
from fedmedgen.emission.sampling import emit
from fedmedgen.federation import local_round, plan
from fedmedgen.models.denoiser import Denoiser
from fedmedgen.models.moments import MomentsGenerator
from fedmedgen.seeds import seed_of
from fedmedgen.training.checkpoints import load_arrays, save_arrays
from fedmedgen.training.fit import Schedule, fit_ordinary
from fedmedgen.training.losses import diffusion_loss
from fedmedgen.training.rows import Rows
from server.run_store import RunStore

FILE = "curriculum.safetensors"
PRETRAINED = "pretrained.safetensors"
logger = logging.getLogger(__name__)


def teach(store: RunStore, denoiser: Denoiser, cheap: MomentsGenerator) -> None:
    """Train the denoiser on samples of the release: post-processing, done once in a run's life."""
    if _known(store, FILE, denoiser):
        return
    settings = store.settings
    seed = seed_of(settings.seed, "curriculum")
    drawn = emit(cheap, counts=settings.curriculum.samples, settings=settings.generator, seed=seed).cases
    _lessons(store, denoiser, drawn, steps=settings.curriculum.steps, seed=seed)
    _save(store, FILE, denoiser)


def pretrain(store: RunStore, denoiser: Denoiser, public: Sequence[Case]) -> None:
    """Train the denoiser on public images, with the curriculum's batch and rate: it costs no privacy."""
    if _known(store, PRETRAINED, denoiser):
        return
    steps, seed = store.settings.prior.steps, seed_of(store.settings.seed, "pretraining")
    _lessons(store, denoiser, public, steps=steps, seed=seed)
    _save(store, PRETRAINED, denoiser)


def _lessons(store: RunStore, denoiser: Denoiser, cases: Sequence[Case], *, steps: int, seed: int) -> None:
    settings, asked = store.settings, store.settings.curriculum

    def rows(generator: torch.Generator) -> Rows:
        chosen = torch.randint(len(cases), (asked.batch_size,), generator=generator).tolist()
        return local_round.draw_rows(settings, plan.GENERATOR, 1, [cases[i] for i in chosen], generator, denoiser)

    schedule = Schedule(
        learning_rate=asked.learning_rate,
        first_step=0,
        steps=steps,
        total_steps=steps,
        decay=settings.generator.decay,
    )
    denoiser.to(local_round.device_of(settings))
    loss = fit_ordinary(
        denoiser, diffusion_loss, rows, schedule=schedule, generator=torch.Generator().manual_seed(seed)
    )
    denoiser.to("cpu")
    logger.info("lessons at the server: mean loss %.4f over %d steps", loss, steps)


def _known(store: RunStore, name: str, denoiser: Denoiser) -> bool:
    """Whether the lessons were done before this run was resumed; the denoiser has their weights then."""
    path = store.folder / name
    if path.is_file():
        local_round.load_arrays(denoiser, {key: value.numpy() for key, value in load_arrays(path).items()})
    return path.is_file()


def _save(store: RunStore, name: str, denoiser: Denoiser) -> None:
    arrays = local_round.trainable_arrays(denoiser)
    save_arrays(store.folder / name, {key: torch.from_numpy(value.copy()) for key, value in arrays.items()})
