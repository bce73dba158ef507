"""A GAN's decoder between the rounds: trained at the server from the combined critic, without asking any site."""

from functools import partial

import torch

from fedmedgen import devices
from fedmedgen.federation import local_round
from fedmedgen.federation.egress import Arrays
from fedmedgen.models.generators import Trained
from fedmedgen.models.one_step import OneStepGenerator
from fedmedgen.seeds import seed_of
from fedmedgen.settings import Settings
from fedmedgen.training.families import family_of
from fedmedgen.training.fit import Schedule
from server.public_arrays import ServerPart


def server_part(settings: Settings, network: Trained) -> ServerPart:
    """What the generator's rounds have beside the weights that sites train, and what the server does between them."""
    training = family_of(settings.generator).server_training
    step = partial(_train, settings) if training else None
    return ServerPart(local_round.public_arrays(network), step=step)


def follow_shares(network: Trained, shares: torch.Tensor) -> None:
    """Let a GAN's decoder draw each class as often as the release says that patients are of it."""
    if isinstance(network, OneStepGenerator) and network.adversarial:
        network.class_shares.data.copy_(shares)


def at_the_end(part: ServerPart) -> Arrays:
    """The public arrays that the generator is saved with: their average where the server trained them."""
    return {name: part.state.get(name, value) for name, value in part.public.items()}


def _train(settings: Settings, number: int, weights: Arrays, part: ServerPart) -> None:
    """`generator.decoder_steps` of the decoder: post-processing of what the sites have released.

    **Guarantee** It depends on settings, round, weights and part alone: a resumed run goes on bit by bit.
    """
    torch.set_num_threads(settings.runtime.server_threads)
    training_of = family_of(settings.generator).server_training
    network = local_round.build_generator(settings)
    assert isinstance(network, OneStepGenerator)
    assert training_of is not None
    local_round.load_public(network, part.public)
    local_round.load_arrays(network, weights)
    network.to(devices.device_of(settings))
    training = training_of(network, {name: torch.from_numpy(value.copy()) for name, value in part.state.items()})
    steps = settings.generator.decoder_steps
    schedule = Schedule(
        learning_rate=settings.generator.decoder_rate,
        first_step=(number - 1) * steps,
        steps=steps,
        total_steps=settings.rounds * steps,
        decay=settings.generator.decay,
    )
    noise = torch.Generator().manual_seed(seed_of(settings.seed, "decoder", number))
    for step in range(steps):
        training.step(schedule.rate(step), noise)
    part.public = local_round.public_arrays(network)
    part.state = {name: value.detach().cpu().numpy() for name, value in training.state.items()}
