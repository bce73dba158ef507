"""The generator's first lessons: samples of the release, at the server, before any round. No site is asked."""

import logging

import torch

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
logger = logging.getLogger(__name__)


def teach(store: RunStore, network: Trained, cheap: MomentsGenerator) -> None:
    """Train the network on samples of the release: post-processing, done once in a run's life."""
    path = store.folder / FILE
    if path.is_file():
        network.load_state_dict(load_arrays(path), strict=False)  # buffers are the network's own
        return
    settings, asked = store.settings, store.settings.curriculum
    seed = seed_of(settings.seed, "curriculum")
    drawn = emit(cheap, counts=asked.samples, settings=settings.generator, seed=seed).cases

    def rows(generator: torch.Generator) -> Rows:
        chosen = torch.randint(len(drawn), (asked.batch_size,), generator=generator).tolist()
        return local_round.draw_rows(settings, plan.GENERATOR, 1, [drawn[index] for index in chosen], generator)

    schedule = Schedule(
        learning_rate=asked.learning_rate,
        first_step=0,
        steps=asked.steps,
        total_steps=asked.steps,
        decay=settings.generator.decay,
    )
    network.to(local_round.device_of(settings))
    family, noise = family_of(settings.generator), torch.Generator().manual_seed(seed)
    loss = family.fit(network, family.loss, rows, schedule=schedule, generator=noise)
    network.to("cpu")
    logger.info("curriculum: mean loss %.4f over %d steps on samples of the release", loss, asked.steps)
    save_arrays(path, dict(network.named_parameters()))
