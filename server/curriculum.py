"""The generator's first lessons, at the server: public images, samples of the release. No site is asked."""

import logging
from collections.abc import Sequence

import torch

from fedmedgen import devices
from fedmedgen.data.cases import Case
from fedmedgen.emission.sampling import emit
from fedmedgen.federation import local_round, plan
from fedmedgen.models.generators import Trained
from fedmedgen.models.moments import MomentsGenerator
from fedmedgen.seeds import seed_of
from fedmedgen.training.checkpoints import load_arrays, save_arrays
from fedmedgen.training.families import family_of
from fedmedgen.training.fit import Schedule
from fedmedgen.training.rows import Rows
from server.run_store import RunStore

FILE = "curriculum.safetensors"
PRETRAINED = "pretrained.safetensors"
logger = logging.getLogger(__name__)


def teach(store: RunStore, network: Trained, cheap: MomentsGenerator) -> None:
    """Train the network on samples of the release: post-processing, done once in a run's life."""
    if _known(store, FILE, network):
        return
    settings = store.settings
    seed = seed_of(settings.seed, "curriculum")
    drawn = emit(cheap, counts=settings.curriculum.samples, settings=settings.generator, seed=seed).cases
    _lessons(store, network, drawn, steps=settings.curriculum.steps, seed=seed)
    _save(store, FILE, network)


def pretrain(store: RunStore, network: Trained, public: Sequence[Case]) -> None:
    """Train the network on public images, with the curriculum's batch and rate: it costs no privacy."""
    if _known(store, PRETRAINED, network):
        return
    steps, seed = store.settings.prior.steps, seed_of(store.settings.seed, "pretraining")
    _lessons(store, network, public, steps=steps, seed=seed)
    _save(store, PRETRAINED, network)


def _lessons(store: RunStore, network: Trained, cases: Sequence[Case], *, steps: int, seed: int) -> None:
    settings, asked = store.settings, store.settings.curriculum

    def rows(generator: torch.Generator) -> Rows:
        chosen = torch.randint(len(cases), (asked.batch_size,), generator=generator).tolist()
        return local_round.draw_rows(settings, plan.GENERATOR, 1, [cases[i] for i in chosen], generator, network)

    schedule = Schedule(
        learning_rate=asked.learning_rate,
        first_step=0,
        steps=steps,
        total_steps=steps,
        decay=settings.generator.decay,
    )
    network.to(devices.device_of(settings))
    family, noise = family_of(settings.generator), torch.Generator().manual_seed(seed)
    loss = family.fit(network, family.loss, rows, schedule=schedule, generator=noise)
    network.to("cpu")
    logger.info("lessons at the server: mean loss %.4f over %d steps", loss, steps)


def _known(store: RunStore, name: str, network: Trained) -> bool:
    """Whether the lessons were done before this run was resumed; the network has their weights then."""
    path = store.folder / name
    if path.is_file():
        network.load_state_dict(load_arrays(path), strict=False)  # buffers are the network's own
    return path.is_file()


def _save(store: RunStore, name: str, network: Trained) -> None:
    save_arrays(store.folder / name, dict(network.named_parameters()))
