"""Settings of the statistics stage: what is released first, the public images it leans on, what is trained on it."""

from dataclasses import dataclass
from typing import Literal

from fedmedgen.schema import positive, require


@dataclass(frozen=True, kw_only=True)
class StatisticsSettings:
    """Means over patients, released before any training; samples of them cost no further privacy."""

    share: float = 0.0  # of epsilon; 0: no such stage; 1: nothing is left for the rounds, which are then not run
    kind: Literal["moments", "kernel-mean"] = "moments"
    basis: Literal["pca", "cosine"] = "pca"
    dimension: int = 0  # coefficients of an image; 0: by rule, from the noise and public counts alone
    features: int = 512  # random Fourier features of the kernel mean
    shrink: float = 0.5  # of a class's covariance towards the pooled one
    mask_slope: float = 0.0  # pixels beside a mask's edge over which it is released as a slope; 0: as a step
    mask_weight: float = 1.0  # of mask channels beside the image: the more, the more of the release is of shapes
    rounds: int = 1  # each after the first asks about features that networks learned from samples of those before
    networks: int = 2  # that learn features
    network_steps: int = 700  # of their training, at the server
    candidates: int = 8  # drawn for one image; the one kept has the features that speak most for its class

    def __post_init__(self) -> None:
        require(0 <= self.share <= 1, "statistics.share", self.share, "from 0 to 1")
        require(0 <= self.dimension <= 4096, "statistics.dimension", self.dimension, "from 0 to 4096")
        even = self.features >= 2 and self.features % 2 == 0
        require(even, "statistics.features", self.features, "an even number of at least 2")
        require(0 <= self.shrink <= 1, "statistics.shrink", self.shrink, "from 0 to 1")
        require(0 <= self.mask_slope <= 1024, "statistics.mask_slope", self.mask_slope, "from 0 to 1024 pixels")
        require(0 < self.mask_weight <= 100, "statistics.mask_weight", self.mask_weight, "above 0, at most 100")
        require(1 <= self.rounds <= 4, "statistics.rounds", self.rounds, "from 1 to 4")
        require(1 <= self.networks <= 8, "statistics.networks", self.networks, "from 1 to 8")
        require(1 <= self.candidates <= 64, "statistics.candidates", self.candidates, "from 1 to 64")
        positive("statistics", self, "network_steps")


@dataclass(frozen=True, kw_only=True)
class PriorSettings:
    """Public images at the server: they choose the basis, and cost no privacy."""

    roots: tuple[str, ...] = ()  # folders or npz of public radiographs of other sites, read by the server alone
    phantoms: int = 1000  # phantoms beside them; 0: none
    steps: int = 0  # of training the generator on them at the server, before any round; 0: none
    varied: bool = False  # in other positions, angles, sizes and exposures than they came in
    residual: bool = True  # what the basis doesn't span is taken from prior images
    nearest: bool = False  # from the one nearest to what was drawn, masks and all; else from any, and no mask

    def __post_init__(self) -> None:
        require(self.phantoms >= 0, "prior.phantoms", self.phantoms, "at least 0")
        require(self.steps >= 0, "prior.steps", self.steps, "at least 0")
        require(self.residual or not self.nearest, "prior.nearest", self.nearest, "false, or prior.residual=true")


@dataclass(frozen=True, kw_only=True)
class AutoencoderSettings:
    """The autoencoder of generator.family=latent, fitted at the server on public images."""

    channels: tuple[int, ...] = (16, 32, 32)  # by level; each level but the first halves the sides
    latent_channels: int = 4
    norm_groups: int = 8
    steps: int = 1000
    batch_size: int = 16
    learning_rate: float = 2e-3
    kl_weight: float = 1e-4  # of the divergence of the latents from unit noise

    def __post_init__(self) -> None:
        positive("autoencoder", self, "latent_channels", "norm_groups", "steps", "batch_size", "learning_rate")
        known = bool(self.channels) and all(width > 0 for width in self.channels)
        require(known, "autoencoder.channels", self.channels, "at least one level, of at least one channel each")
        require(self.kl_weight >= 0, "autoencoder.kl_weight", self.kl_weight, "at least 0")


@dataclass(frozen=True, kw_only=True)
class CurriculumSettings:
    """Training at the server on samples of the release, before the rounds."""

    steps: int = 0  # 0: none
    samples: int = 4000
    batch_size: int = 64
    learning_rate: float = 2e-3

    def __post_init__(self) -> None:
        require(self.steps >= 0, "curriculum.steps", self.steps, "at least 0")
        positive("curriculum", self, "samples", "batch_size", "learning_rate")


def check_release(statistics: StatisticsSettings, curriculum: CurriculumSettings, *, moments: bool, masks: int) -> None:
    """Refuse stages that have nothing to start from or nothing to spend; `masks`: rounds of the segmenter."""
    share = statistics.share
    if moments:
        require(share == 1, "statistics.share", share, "1 with generator.family=moments: no rounds follow the release")
    if share == 1:
        words = "0 with statistics.share=1: nothing is left for its rounds"
        require(masks == 0, "segmenter.rounds", masks, words)
        words = "above 0 with statistics.share=1, unless generator.family=moments: else nothing trains the network"
        require(moments or curriculum.steps > 0, "curriculum.steps", curriculum.steps, words)
    if share == 0:
        words = "0 without a release to sample (statistics.share=0)"
        require(curriculum.steps == 0, "curriculum.steps", curriculum.steps, words)
        require(
            statistics.rounds == 1, "statistics.rounds", statistics.rounds, "1 without a release (statistics.share=0)"
        )
