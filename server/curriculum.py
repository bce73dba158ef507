"""The generator's first lessons: samples of the release, at the server, before any round. No site is asked."""

import logging

import torch

from fedmedgen.emission.sampling import emit
from fedmedgen.federation import local_round, plan
from fedmedgen.federation.egress import Arrays
from fedmedgen.models.generators import Trained
from fedmedgen.models.moments import MomentsGenerator
from fedmedgen.seeds import seed_of
from fedmedgen.training.checkpoints import load_arrays, save_arrays
from fedmedgen.training.fit import Schedule, fit_ordinary
from fedmedgen.training.rows import Rows
from server.run_store import RunStore

FILE = "curriculum.safetensors"
logger = logging.getLogger(__name__)


def teach(store: RunStore, network: Trained, cheap: MomentsGenerator) -> Arrays:
    """The network's weights after training on samples of the release: post-processing, done once in a run's life."""
    path = store.folder / FILE
    if path.is_file():
        return {name: value.numpy() for name, value in load_arrays(path).items()}
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
    own = local_round.loss_of(settings, plan.GENERATOR)
    loss = fit_ordinary(network, own, rows, schedule=schedule, generator=torch.Generator().manual_seed(seed))
    network.to("cpu")
    logger.info("curriculum: mean loss %.4f over %d steps on samples of the release", loss, asked.steps)
    arrays = local_round.trainable_arrays(network)
    save_arrays(path, {name: torch.from_numpy(value.copy()) for name, value in arrays.items()})
    return arrays
