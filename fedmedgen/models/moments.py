"""The cheap generator: images straight from released statistics, without training on any radiograph."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from fedmedgen.errors import SettingsError
from fedmedgen.models.basis import Basis
from fedmedgen.models.coefficient_sampler import CoefficientSampler, coefficient_network, transformed

HIDDEN = 128
FIT_STEPS = 1500
FIT_BATCH = 256
LEARNING_RATE = 3e-3
USUAL_EXPOSURE = (0.0, 0.5)


class Gaussians(Protocol):
    """Means ``[K, d]`` and covariances ``[K, d, d]`` of the classes' coefficients."""

    @property
    def means(self) -> Tensor: ...

    @property
    def covariances(self) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class MomentsConfig:
    """What a generator from statistics must know beside its arrays; saved with it."""

    classes: tuple[str, ...]
    mask_classes: tuple[str, ...]  # background first; empty: images alone
    size: tuple[int, int]


@dataclass(frozen=True, kw_only=True, eq=False)
class Pool:
    """What images take from public ones beside their coefficients.

    **Shapes** `residuals` ``[M, C, H, W]``, standardised public images less what the basis spans of them; `codes`
    ``[M, d]``, their coefficients, where an image is to have the residual of the nearest, whose masks are its own, and
    not any; `exposures` ``[N, 2]``, what `basis.standardised` took out of public images
    """

    residuals: Tensor | None = None
    codes: Tensor | None = None
    exposures: Tensor | None = None


class MomentsGenerator(nn.Module):
    """A sampler with the names of its classes; to emission it looks as a denoiser does, but draws in one step."""

    def __init__(self, sampler: CoefficientSampler, config: MomentsConfig) -> None:
        super().__init__()
        self.sampler = sampler
        self.config = config

    @property
    def num_classes(self) -> int:
        return len(self.config.classes)

    @property
    def num_channels(self) -> int:
        return int(self.sampler.config.shape[0])

    @property
    def device(self) -> torch.device:
        return self.sampler.mean.device

    def name_classes(self, classes: Sequence[str], mask_classes: Sequence[str] = ()) -> "MomentsGenerator":
        """Say what the numbers of labels and masks mean; returns the generator.

        **Raises** `SettingsError` if their count is not the generator's.
        """
        masks = tuple(mask_classes) if self.num_channels > 1 else ()
        channels = 1 + max(0, len(masks) - 1)
        if max(1, len(classes)) != self.sampler.config.num_classes or channels != self.num_channels:
            raise SettingsError(
                f"the generator has {self.sampler.config.num_classes} classes and {self.num_channels} channels;"
                f" got the names {list(classes)} and {list(mask_classes)}"
            )
        self.config = replace(self.config, classes=tuple(classes), mask_classes=masks)
        return self

    def draw(self, labels: Tensor, seeds: Sequence[int]) -> Tensor:
        """Images and mask channels ``[B, C, H, W]`` in [-1, 1]; each depends on its own label and seed alone."""
        drawn: Tensor = self.sampler.draw(labels, seeds)
        return drawn


def from_moments(
    basis: Basis, moments: Gaussians, *,
    classes: Sequence[str], mask_classes: Sequence[str] = (), pool: Pool | None = None,
) -> MomentsGenerator:  # fmt: skip
    """Coefficients from each class's Gaussian; without classes, from the one there is."""
    sampler = _sampler(basis, len(moments.means), pool, hidden=0)
    values, vectors = torch.linalg.eigh(moments.covariances.double())
    factors = (vectors * values.clamp(min=0).sqrt()[:, None, :]) @ vectors.transpose(1, 2)
    sampler.means.data.copy_(moments.means)
    sampler.factors.data.copy_(factors)
    return _named(sampler, basis, classes, mask_classes)


def from_network(
    basis: Basis, network: nn.Sequential, *,
    classes: Sequence[str], mask_classes: Sequence[str] = (), pool: Pool | None = None,
) -> MomentsGenerator:  # fmt: skip
    """Coefficients from a network of `fit_network`; the rest as in `from_moments`."""
    sampler = _sampler(basis, max(1, len(classes)), pool, hidden=HIDDEN)
    assert sampler.network is not None
    sampler.network.load_state_dict(network.state_dict())
    return _named(sampler.requires_grad_(False), basis, classes, mask_classes)


def fit_network(
    embedding: Tensor, embed: Callable[[Tensor], Tensor], *, dimension: int, seed: int, steps: int = FIT_STEPS
) -> nn.Sequential:
    """The network whose samples of each class have, on average, the features nearest to its `embedding` ``[K, F]``.

    `embed` is the map from coefficients to features under which the embedding was released.

    **Source** Harder et al. 2021 (DP-MERF), in coefficients instead of pixels.
    **Guarantee** It depends on the embedding and the seed alone; torch's global random state is left as it was.
    """
    num_classes, target = len(embedding), embedding.float()
    labels = torch.arange(num_classes).repeat_interleave(FIT_BATCH)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = coefficient_network(dimension, num_classes, HIDDEN)
        optimiser = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        for _ in range(steps):
            z = transformed(network, labels, torch.randn(len(labels), dimension), num_classes)
            means = embed(z).reshape(num_classes, FIT_BATCH, -1).mean(dim=1)
            optimiser.zero_grad()
            torch.autograd.backward((means - target).square().sum())
            optimiser.step()
            falling.step()
    return network


def _sampler(basis: Basis, num_classes: int, pool: Pool | None, *, hidden: int) -> CoefficientSampler:
    pool = pool or Pool()
    known = torch.tensor([USUAL_EXPOSURE]) if pool.exposures is None else pool.exposures
    sampler: CoefficientSampler = CoefficientSampler(
        shape=list(basis.mean.shape),
        dimension=basis.dimension,
        num_classes=num_classes,
        pool_size=0 if pool.residuals is None else len(pool.residuals),
        num_exposures=len(known),
        hidden=hidden,
        nearest=pool.codes is not None,
    )
    sampler.exposures.data.copy_(known)
    for name in ("mean", "components", "scale"):
        getattr(sampler, name).data.copy_(getattr(basis, name))
    for kept, given in ((sampler.residuals, pool.residuals), (sampler.codes, pool.codes)):
        if kept is not None and given is not None:
            kept.data.copy_(given)
    return sampler


def _named(
    sampler: CoefficientSampler, basis: Basis, classes: Sequence[str], mask_classes: Sequence[str]
) -> MomentsGenerator:
    height, width = basis.mean.shape[1:]
    config = MomentsConfig(classes=(), mask_classes=(), size=(height, width))
    return MomentsGenerator(sampler, config).eval().name_classes(classes, mask_classes)
