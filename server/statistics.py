"""The statistics stage at the server: a public basis out, one noisy vector back, and the cheap generator made of it.

Later rounds ask about features that networks learned from samples of that generator, and make it sharper.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.serverapp import Grid
from torch import Tensor

from fedmedgen.emission.sampling import emit
from fedmedgen.errors import RunError, SettingsError, SpentError
from fedmedgen.evaluation import classification
from fedmedgen.federation import plan
from fedmedgen.federation.egress import Arrays
from fedmedgen.federation.local_statistics import FREQUENCIES, VECTOR, dimension_of, layout_of, masks_of, reply_shapes
from fedmedgen.models import basis as bases
from fedmedgen.models import refinement
from fedmedgen.models.basis import Basis
from fedmedgen.models.coefficient_sampler import classifier
from fedmedgen.models.moments import MomentsGenerator, Pool, fit_network, from_moments, from_network
from fedmedgen.privacy import statistics
from fedmedgen.seeds import seed_of
from fedmedgen.settings import Settings
from fedmedgen.training.checkpoints import load_arrays, save_arrays
from server.rounds import Rounds, run_stage
from server.run_store import Checkpoint, RunStore
from server.secure_sum import summed

logger = logging.getLogger(__name__)

FILE = "statistics.safetensors"  # what was asked and what came of it: public from then on
LARGEST = 1_000_000  # numbers in the vector, where the dimension is chosen here
MOST = 256  # coefficients, likewise
MOST_EMBEDDED = 64  # whose kernel mean is released: phantoms do best with 16, digits with about 64
RESIDUALS, NEAREST_OF = 256, 1000
SAMPLES = 4000  # that networks learn their features from


def release(grid: Grid, rounds: Rounds, public: Tensor) -> Arrays:
    """The basis and the sum over all sites, divided by all declared patients; asked for once in a run's life.

    **Raises** `SettingsError` where a later round would find fewer than two classes to tell apart, or no public images.

    **Guarantee** what is asked is on disk before it is sent, so a resumed run asks the same and sites answer free.
    """
    classes, asked = rounds.store.settings.data.classes, rounds.store.settings.statistics
    if asked.rounds > 1 and len(classes) < 2:
        raise SettingsError(f"statistics.rounds={asked.rounds} needs at least two classes to tell apart; got {classes}")
    return _answered(grid, rounds, 1, lambda: ask_with(rounds.store.settings, rounds, public))


def refine(grid: Grid, rounds: Rounds, cheap: MomentsGenerator) -> MomentsGenerator:
    """The cheap generator after the rounds that ask about features learned on its own samples.

    **Guarantee** as of `release`.
    """
    settings = rounds.store.settings
    for number in range(2, settings.statistics.rounds + 1):
        try:
            released = _answered(grid, rounds, number, partial(ask_about, rounds, cheap, number))
        except SpentError as error:
            logger.warning("the statistics end before round %d, with what round %d gave: %s", number, number - 1, error)
            break
        layout = layout_of(settings, dimension_of(released, number), number)
        moments = statistics.decode(torch.from_numpy(released[VECTOR].copy()), layout, shrink=1.0)
        sizes = {"num_classes": len(settings.data.classes), "networks": settings.statistics.networks}
        features = refinement.from_arrays(released, **sizes)
        cheap = refinement.refined(cheap, features, moments, candidates=settings.statistics.candidates)
    return cheap


def ask_about(rounds: Rounds, cheap: MomentsGenerator, number: int) -> Arrays:
    """The features of networks that tell the classes of the generator's samples apart."""
    settings = rounds.store.settings
    classes, asked = settings.data.classes, settings.statistics
    seed = seed_of(settings.seed, "features", number)
    drawn = emit(cheap, counts=SAMPLES, settings=settings.generator, seed=seed).cases
    x = bases.standardised(torch.from_numpy(np.stack([case.image for case in drawn])))[0]
    y = np.array([case.label for case in drawn], np.int64)
    networks = [
        classification.fit(x, y, build=partial(classifier, len(classes)), steps=asked.network_steps, seed=own)
        for own in (seed_of(seed, "network", place) for place in range(asked.networks))
    ]
    dimension = _dimension(rounds, MOST, bases.PAYING_FEATURES)
    return refinement.to_arrays(refinement.learned_features(networks, x, dimension=dimension))


def _answered(grid: Grid, rounds: Rounds, number: int, ask: Callable[[], Arrays]) -> Arrays:
    """What a round asked about, and the sum over all sites divided by all declared patients."""
    store = rounds.store
    known = _load(store, number)
    if VECTOR in known:
        return known
    if not known:
        known = ask()
        _save(store, number, known)
    latest = store.latest_of(plan.STATISTICS)
    if latest is not None and latest.round > number:
        name, gone = store.folder.name, _path(store, number).name
        raise RunError(f"{name}/{gone} is missing though later rounds are done: put it back, or start a new run")
    stage = replace(plan.stage_named(store.settings, plan.STATISTICS), rounds=number)
    shapes = reply_shapes(store.settings, dimension_of(known, number), number)
    if store.settings.federation.shared:
        mean = summed(grid, rounds, stage, number, known, shapes)
        store.save(Checkpoint(stage.name, number, {"weights": mean, "ema": mean}, rounds.rows, rounds.seconds))
    else:
        mean = run_stage(grid, rounds, stage, known, {}, latest, reply_shapes=shapes)
    _save(store, number, {**known, **mean})
    return {**known, **mean}


def ask_with(settings: Settings, rounds: Rounds, public: Tensor) -> Arrays:
    """The public basis, and the frequencies of a kernel mean, that every site is asked about."""
    dimension = settings.statistics.dimension or _dimension(rounds, _limit(settings, public), bases.PAYING)
    basis = build_basis(settings, public, dimension)
    arrays = basis.to_arrays()
    if settings.statistics.kind == "kernel-mean":
        layout = layout_of(settings, dimension)
        arrays[FREQUENCIES] = statistics.random_frequencies(layout, seed_of(settings.seed, "frequencies")).numpy()
    return arrays


def build_basis(settings: Settings, public: Tensor, dimension: int) -> Basis:
    """**Raises** `SettingsError` if the public images don't carry a basis of this dimension."""
    if settings.statistics.basis == "pca":
        if len(public) < 2:
            raise SettingsError("statistics.basis=pca needs public images: prior.roots, prior.phantoms or basis=cosine")
        return bases.pca(bases.standardised(public)[0], dimension)
    known = bases.standardised(public)[0] if len(public) else None
    return bases.cosine(settings.data.size, max(1, len(masks_of(settings))), dimension, known)


def generator_of(settings: Settings, released: Arrays, public: Tensor) -> MomentsGenerator:
    """The generator that the release alone makes, with residuals of public images: post-processing."""
    basis = Basis.from_arrays(released)
    layout = layout_of(settings, basis.dimension)
    vector = torch.from_numpy(released[VECTOR].copy())
    pool = _pool(settings, basis, public)
    if settings.statistics.kind == "moments":
        moments = statistics.decode(vector, layout, shrink=settings.statistics.shrink)
        make = partial(from_moments, basis, moments)
    else:
        _, features = statistics.decode_embedding(vector, layout)
        embed = partial(statistics.embed, frequencies=torch.from_numpy(released[FREQUENCIES].copy()))
        seed = seed_of(settings.seed, "kernel mean")
        network = fit_network(features.float(), embed, dimension=basis.dimension, seed=seed)
        make = partial(from_network, basis, network)
    classes, masks = settings.data.classes, masks_of(settings)
    return make(classes=classes, mask_classes=masks, pool=pool)


def _pool(settings: Settings, basis: Basis, public: Tensor) -> Pool:
    """What images take from public ones: exposure, texture, and of the nearest its masks.

    Of any other no mask is taken, not even what the basis doesn't span of it: that is another chest's outline.
    """
    if not len(public):
        return Pool()
    asked = settings.prior
    images, exposures = bases.standardised(_some(public, NEAREST_OF if asked.nearest else RESIDUALS))
    if not asked.residual:
        return Pool(exposures=exposures)
    rest = basis.residual(images)
    rest[:, 1:] = images[:, 1:] if asked.nearest else 0
    return Pool(residuals=rest, codes=basis.coefficients(images) if asked.nearest else None, exposures=exposures)


def class_shares(store: RunStore) -> Tensor:
    """How often each class occurs ``[K]`` by the first release of a study; one where it names none."""
    settings, released = store.settings, _load(store, 1)
    layout = layout_of(settings, dimension_of(released, 1))
    read = statistics.decode if settings.statistics.kind == "moments" else statistics.decode_embedding
    found = read(torch.from_numpy(released[VECTOR].copy()), layout)
    shares: Tensor = found[0] if isinstance(found, tuple) else found.shares
    return shares


def facts_of(rounds: Rounds, released: Arrays) -> dict[str, Any]:
    """What result.json says of the stage."""
    agreed, releases = rounds.agreed, rounds.store.settings.statistics.rounds
    return {
        "epsilon": None if agreed is None else agreed.epsilon_after({plan.STATISTICS: releases}),
        "rounds": releases,
        "noise_multiplier": rounds.noise.get(plan.STATISTICS, 0.0),
        "dimension": int(released["basis.scale"].size),
        "numbers": int(released[VECTOR].size),
        "kind": rounds.store.settings.statistics.kind,
    }


def _dimension(rounds: Rounds, limit: int, paying: float) -> int:
    """By the rule, from the noise and public counts alone."""
    patients = sum(member.patients for member in rounds.members)
    noise = rounds.noise.get(plan.STATISTICS, 0.0)
    if rounds.agreed is not None and rounds.agreed.shared:
        noise = rounds.agreed.shared.total(noise, len(rounds.members))
        return bases.dimension_for(noise, patients, 1, limit, paying=paying)
    return bases.dimension_for(noise, patients, len(rounds.members), limit, paying=paying)


def _limit(settings: Settings, public: Tensor) -> int:
    """The most coefficients that public images carry, and whose moments are few enough to send."""
    numbers = public[0].numel() if len(public) else public.shape[1] * math.prod(settings.data.size)
    most = MOST if settings.statistics.kind == "moments" else MOST_EMBEDDED
    limit = min(most, numbers, math.isqrt(LARGEST // layout_of(settings, 1).blocks))
    if settings.statistics.basis == "pca":
        limit = min(limit, max(1, len(public) - 1))
    return limit


def _some(public: Tensor, most: int) -> Tensor:
    """Evenly spaced images: they are saved with the generator."""
    return public[:: math.ceil(len(public) / most)]


def _path(store: RunStore, number: int) -> Path:
    return store.folder / (FILE if number == 1 else f"statistics-{number}.safetensors")


def _load(store: RunStore, number: int) -> Arrays:
    path = _path(store, number)
    return {name: value.numpy() for name, value in load_arrays(path).items()} if path.is_file() else {}


def _save(store: RunStore, number: int, arrays: Arrays) -> None:
    save_arrays(_path(store, number), {name: torch.from_numpy(value.copy()) for name, value in arrays.items()})
