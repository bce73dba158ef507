"""A generator from statistics made sharper by what a second release says of features learned on its own samples."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedmedgen.models.coefficient_sampler import CoefficientSampler, LearnedFeatures
from fedmedgen.models.moments import Gaussians, MomentsGenerator

PREFIX = "features."
RIDGE = 0.5  # of the pooled covariance's mean eigenvalue
FLATTEST = 1e-2  # deviation that a number of a network is taken to have at least
BATCH = 256
Arrays = dict[str, NDArray[np.float32]]


@torch.no_grad()
def learned_features(networks: Sequence[nn.Sequential], x: Tensor, *, dimension: int) -> LearnedFeatures:
    """The leading principal components of what the networks see of samples ``[B, 1, H, W]``; there E|f|^2 = 1."""
    num_classes = int(networks[0][-1].out_features)  # type: ignore[arg-type]
    features = LearnedFeatures(num_classes=num_classes, networks=len(networks), dimension=dimension)
    features.networks.load_state_dict(nn.ModuleList(networks).state_dict())
    features.requires_grad_(False).eval()
    numbers = torch.cat([features.numbers(part) for part in torch.split(x, BATCH)]).double()
    centre, spread = numbers.mean(dim=0), numbers.std(dim=0).clamp(min=FLATTEST)
    rows = (numbers - centre) / spread
    values, vectors = torch.linalg.eigh(rows.T @ rows / len(rows))
    length = values[-dimension:].sum().clamp(min=FLATTEST).sqrt()
    features.centre.copy_(centre)
    features.directions.copy_(vectors[:, -dimension:].flip(1).T / spread / length)
    return features


def to_arrays(features: LearnedFeatures) -> Arrays:
    """As sent to sites."""
    return {PREFIX + name: value.numpy() for name, value in features.state_dict().items()}


def from_arrays(arrays: Mapping[str, NDArray[np.float32]], *, num_classes: int, networks: int) -> LearnedFeatures:
    """The features that were sent."""
    known = {name.removeprefix(PREFIX): torch.from_numpy(value.copy()) for name, value in arrays.items()}
    dimension = len(known["directions"])
    features = LearnedFeatures(num_classes=num_classes, networks=networks, dimension=dimension)
    features.load_state_dict({name: known[name] for name in features.state_dict()})
    return features.requires_grad_(False).eval()


def shapes(*, num_classes: int, networks: int, dimension: int) -> dict[str, tuple[int, ...]]:
    """Of the arrays that describe such features, found without taking memory for them."""
    with torch.device("meta"):
        features = LearnedFeatures(num_classes=num_classes, networks=networks, dimension=dimension)
    return {PREFIX + name: tuple(value.shape) for name, value in features.state_dict().items()}


def discriminant(moments: Gaussians) -> tuple[Tensor, Tensor]:
    """Weights ``[K, d]`` and offsets ``[K]`` of the classes' linear scores, all as likely, of one covariance.

    A ridge keeps directions of little variance, where noise decides, from taking over.

    **Source** Fisher 1936; regularised as in Friedman 1989.
    """
    covariance = moments.covariances.mean(dim=0)
    dimension = len(covariance)
    ridge = RIDGE * covariance.trace() / dimension
    weights = torch.linalg.solve(covariance + ridge * torch.eye(dimension).to(covariance), moments.means.T).T
    return weights, -(weights * moments.means).sum(dim=1) / 2


def refined(
    generator: MomentsGenerator, features: LearnedFeatures, moments: Gaussians, *, candidates: int
) -> MomentsGenerator:
    """The generator that draws `candidates` images where it drew one, and keeps the likeliest of its class.

    `moments` are those of the learned features; a refinement that the generator had is replaced.
    """
    known = generator.sampler
    kept = {name: value for name, value in known.config.items() if not name.startswith("_")}
    sampler: CoefficientSampler = CoefficientSampler(
        **kept | {"networks": len(features.networks), "features": len(features.directions), "candidates": candidates}
    )
    state = {name: value for name, value in known.state_dict().items() if not name.startswith("learned.")}
    weights, offsets = discriminant(moments)
    state |= {"weights": weights.float(), "offsets": offsets.float()}
    state |= {f"learned.{name}": value for name, value in features.state_dict().items()}
    sampler.load_state_dict(state)
    return MomentsGenerator(sampler.requires_grad_(False), generator.config).eval()
