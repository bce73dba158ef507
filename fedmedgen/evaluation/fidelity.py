"""How near a synthetic set is to real cases: FD, KID, precision, recall, density, coverage, and the real-vs-real floor.

Two halves of the real cases, split by patient, and the synthetic set are cut to the same number of cases. What the
synthetic set scores against the first half stands beside what the second half scores against it: the floor.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from prdc import compute_prdc
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from fedmedgen.data.cases import CaseSet, FloatArray
from fedmedgen.models.features import NUM_FEATURES, Features
from fedmedgen.seeds import seed_of

log = logging.getLogger(__name__)

EXTRACTOR = "EfficientNet-Lite0, block 10, 112 dimensions"
SPLITS = 3
LARGEST_N = 400
SMALLEST_N = 12
NEAREST = 5
KID_SUBSETS = 50
KID_SUBSET_SIZE = 100


class _Given(nn.Module):
    """Features that were computed already, in the place where torchmetrics wants a network."""

    num_features = NUM_FEATURES

    def forward(self, features: Tensor) -> Tensor:
        return features


def fidelity(
    synthetic: CaseSet, real: CaseSet, *, seed: int, max_cases: int, prior: CaseSet | None = None
) -> dict[str, Any]:
    """Distances of `synthetic` from `real`, means over a few splits of the real patients; or `skipped`, saying why.

    `floor` is what real cases score, and `prior`, if given, what the prior scores, against the same real cases.
    """
    n = min(len(synthetic), len(real) // 2, max_cases, LARGEST_N)
    if n < SMALLEST_N:
        got = f"{len(synthetic)} and {len(real)}"
        return {"skipped": f"needs {SMALLEST_N} synthetic and {2 * SMALLEST_N} real cases; got {got}"}
    draw = np.random.default_rng(seed_of(seed, "fidelity"))
    network = Features()
    few = _some_patients(real, 2 * n, draw)
    found = np.asarray(network(few.images()))
    sets = {"": synthetic} if prior is None or len(prior) < SMALLEST_N else {"": synthetic, "prior": prior}
    made = {name: np.asarray(network(_some(cases, n, draw).images())) for name, cases in sets.items()}
    scores: dict[str, list[dict[str, float]]] = {name: [] for name in (*sets, "floor")}
    for split in range(SPLITS):
        first, second = halves(few, draw)
        n = min(n, len(first), len(second))
        reference, kid_seed = found[first][:n], seed_of(seed, "kid", split)
        for name, features in {**made, "floor": found[second]}.items():
            scores[name].append(compare(features[:n], reference, seed=kid_seed))
    means = {name: _mean(rows) for name, rows in scores.items()}
    return means.pop("") | means | {"n": n, "extractor": EXTRACTOR, "splits": SPLITS}


def compare(made: FloatArray, real: FloatArray, *, seed: int) -> dict[str, float]:
    """All distances between two sets of features ``[N, 112]``."""
    fd = FrechetInceptionDistance(feature=_Given(), normalize=True)
    size = min(KID_SUBSET_SIZE, len(made), len(real))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Metric `Kernel Inception Distance` will save all")
        kid = KernelInceptionDistance(feature=_Given(), normalize=True, subsets=KID_SUBSETS, subset_size=size)
    for metric in (fd, kid):
        metric.update(torch.from_numpy(real), real=True)
        metric.update(torch.from_numpy(made), real=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        kid_mean, kid_sd = kid.compute()
    with contextlib.redirect_stdout(io.StringIO()):
        areas = compute_prdc(real, made, min(NEAREST, len(real) - 2))
    values = {"fd": fd.compute(), "kid": kid_mean, "kid_sd": kid_sd} | areas
    return {name: float(value) for name, value in values.items()}


def halves(cases: CaseSet, draw: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions of the cases in two halves that share no patient, each in a random order."""
    numbers = {id(case): number for number, case in enumerate(cases)}
    units = [[numbers[id(case)] for case in unit] for unit in cases.by_patient().values()]
    sides: tuple[list[int], list[int]] = ([], [])
    for place in draw.permutation(len(units)):
        min(sides, key=len).extend(units[place])
    return draw.permutation(np.array(sides[0], np.int64)), draw.permutation(np.array(sides[1], np.int64))


def _some(cases: CaseSet, count: int, draw: np.random.Generator) -> CaseSet:
    return cases.with_cases([cases.cases[place] for place in draw.permutation(len(cases))[:count]])


def _some_patients(cases: CaseSet, count: int, draw: np.random.Generator) -> CaseSet:
    units = list(cases.by_patient().values())
    order = [case for place in draw.permutation(len(units)) for case in units[place]]
    return cases.with_cases(order[:count])


def _mean(scores: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    means: dict[str, Any] = {name: float(np.mean([score[name] for score in scores])) for name in scores[0]}
    return means | {"fd_sd": float(np.std([score["fd"] for score in scores]))}
