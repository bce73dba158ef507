"""The statistics stage at the server: a public basis out, one noisy vector back, and the cheap generator made of it."""

import math
from functools import partial
from typing import Any

import torch
from flwr.serverapp import Grid
from torch import Tensor

from fedmedgen.errors import SettingsError
from fedmedgen.federation import plan
from fedmedgen.federation.egress import Arrays
from fedmedgen.federation.local_statistics import FREQUENCIES, VECTOR, layout_of, masks_of, reply_shapes
from fedmedgen.models import basis as bases
from fedmedgen.models.basis import Basis
from fedmedgen.models.moments import MomentsGenerator, fit_network, from_moments, from_network
from fedmedgen.privacy import statistics
from fedmedgen.seeds import seed_of
from fedmedgen.settings import Settings
from fedmedgen.training.checkpoints import load_arrays, save_arrays
from server.rounds import Rounds, run_stage
from server.run_store import RunStore

FILE = "statistics.safetensors"  # what was asked and what came of it: public from then on
LARGEST = 1_000_000  # numbers in the vector, where the dimension is chosen here
MOST = 256  # coefficients, likewise
RESIDUALS = 256


def release(grid: Grid, rounds: Rounds, public: Tensor) -> Arrays:
    """The basis and the sum over all sites, divided by all declared patients; asked for once in a run's life.

    **Guarantee** what is asked is on disk before it is sent, so a resumed run asks the same and sites answer free.
    """
    store = rounds.store
    known = _load(store)
    if VECTOR in known:
        return known
    if not known:
        known = ask_with(store.settings, rounds, public)
        _save(store, known)
    dimension = known["basis.scale"].size
    stage = plan.stage_named(store.settings, plan.STATISTICS)
    shapes = reply_shapes(store.settings, dimension)
    mean = run_stage(grid, rounds, stage, known, {}, store.latest_of(stage.name), reply_shapes=shapes)
    _save(store, {**known, **mean})
    return {**known, **mean}


def ask_with(settings: Settings, rounds: Rounds, public: Tensor) -> Arrays:
    """The public basis, and the frequencies of a kernel mean, that every site is asked about."""
    dimension = settings.statistics.dimension or _dimension(settings, rounds, public)
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
    images, exposures = bases.standardised(_some(public)) if len(public) else (public, None)
    residuals = basis.residual(images) if settings.prior.residual and len(public) else None
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
    return make(classes=classes, mask_classes=masks, residuals=residuals, exposures=exposures)


def facts_of(rounds: Rounds, released: Arrays) -> dict[str, Any]:
    """What result.json says of the stage."""
    agreed = rounds.agreed
    return {
        "epsilon": None if agreed is None else agreed.epsilon_after({plan.STATISTICS: 1}),
        "noise_multiplier": rounds.noise.get(plan.STATISTICS, 0.0),
        "dimension": int(released["basis.scale"].size),
        "numbers": int(released[VECTOR].size),
        "kind": rounds.store.settings.statistics.kind,
    }


def _dimension(settings: Settings, rounds: Rounds, public: Tensor) -> int:
    """By the rule, from the noise and public counts alone."""
    patients = sum(member.patients for member in rounds.members)
    numbers = public[0].numel() if len(public) else public.shape[1] * math.prod(settings.data.size)
    limit = min(MOST, numbers, math.isqrt(LARGEST // layout_of(settings, 1).blocks))
    if settings.statistics.basis == "pca":
        limit = min(limit, max(1, len(public) - 1))
    noise = rounds.noise.get(plan.STATISTICS, 0.0)
    return bases.dimension_for(noise, patients, len(rounds.members), limit)


def _some(public: Tensor) -> Tensor:
    """Evenly spaced images, at most `RESIDUALS`: they are saved with the generator."""
    return public[:: math.ceil(len(public) / RESIDUALS)]


def _load(store: RunStore) -> Arrays:
    path = store.folder / FILE
    return {name: value.numpy() for name, value in load_arrays(path).items()} if path.is_file() else {}


def _save(store: RunStore, arrays: Arrays) -> None:
    save_arrays(store.folder / FILE, {name: torch.from_numpy(value.copy()) for name, value in arrays.items()})
