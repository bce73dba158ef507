"""The one schema of settings: frozen dataclasses, built from any mapping at the border.

Names, defaults and bounds stand here; `conf/` gives each study its values. An unknown key is an error that names
the nearest known one.
"""

import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from fedmedgen.schema import from_mapping, plain, positive, require


@dataclass(frozen=True, kw_only=True)
class ColumnSettings:
    """Names of the columns in labels.csv."""

    filename: str = "filename"
    label: str = "label"
    label_name: str = "label_name"
    patient: str = "patient"
    split: str = "split"


@dataclass(frozen=True, kw_only=True)
class PhantomSettings:
    """Procedural radiographs: what the embedded studies train on, and the prior that costs no privacy."""

    anatomy: Literal["chest", "panoramic"] = "chest"
    patients_per_site: int = 2000
    images_per_patient: int = 2


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Where the radiographs are, how they become tensors, who holds which."""

    root: str = ""  # a folder of sites, a DICOM tree or an npz; empty: phantoms
    public: bool = False  # anybody may see these radiographs: a simulation's report may then tell of single sites
    phantoms: PhantomSettings = field(default_factory=PhantomSettings)
    columns: ColumnSettings = field(default_factory=ColumnSettings)
    classes: tuple[str, ...] = ()  # empty: taken from labels.csv (public by the study's choice)
    mask_classes: tuple[str, ...] = ()  # background first; empty: no masks
    size: tuple[int, int] = (64, 64)  # height, width
    fit: Literal["pad", "squash"] = "pad"
    partition: Literal["natural", "even", "dirichlet", "by-size"] = "natural"
    sites: int = 3
    alpha: float = 0.5  # Dirichlet concentration over labels
    shares: tuple[float, ...] = ()  # by-size: each site's share
    test_share: float = 0.2  # of patients, where no split is given
    min_patients: int = 8
    max_patients: int = 0  # of each site, for quick runs; 0: all

    def __post_init__(self) -> None:
        require(len(self.size) == 2 and min(self.size) >= 8, "data.size", self.size, "two numbers of at least 8")
        require(1 <= self.sites <= 1000, "data.sites", self.sites, "from 1 to 1000")
        require(self.alpha > 0, "data.alpha", self.alpha, "above 0")
        require(0 <= self.test_share < 1, "data.test_share", self.test_share, "from 0 to below 1")
        require(self.min_patients >= 1, "data.min_patients", self.min_patients, "at least 1")
        require(len(self.mask_classes) != 1, "data.mask_classes", self.mask_classes, "empty, or background and more")


@dataclass(frozen=True, kw_only=True)
class GeneratorSettings:
    """The class-conditional diffusion generator and how a site trains it."""

    with_masks: bool = True
    unshuffle: int = 2  # pixels folded into channels at the door of the network
    channels: tuple[int, ...] = (64, 96, 128)
    attention: tuple[bool, ...] = (False, False, True)  # by level
    layers_per_block: int = 1
    norm_groups: int = 8
    sigma_data: float = 0.5
    preconditioning: Literal["edm", "spectral"] = "edm"  # what the skip past the network expects of the data
    noise_mean: float = -1.2  # of ln sigma in training (Karras et al. 2022)
    noise_std: float = 1.2
    label_dropout: float = 0.1
    local_steps: int = 100  # optimiser steps a round, without privacy
    batch_size: int = 32  # without privacy
    learning_rate: float = 1e-3
    decay: Literal["constant", "cosine"] = "cosine"  # of the learning rate over all steps of all rounds
    images_per_patient: int = 4  # m, at most, of each patient drawn
    ema_decay: float = 0.5  # a round, at the server
    flip: bool = False  # mirror half of the images in training
    sampler: Literal["heun", "stochastic", "dpmpp"] = "heun"
    sampler_steps: int = 18
    guidance: float = 1.0

    def __post_init__(self) -> None:
        require(len(self.attention) == len(self.channels), "generator.attention", self.attention, "one word a level")
        require(self.unshuffle in (1, 2, 4), "generator.unshuffle", self.unshuffle, "1, 2 or 4")
        require(0 <= self.label_dropout < 1, "generator.label_dropout", self.label_dropout, "from 0 to below 1")
        require(0 <= self.ema_decay < 1, "generator.ema_decay", self.ema_decay, "from 0 to below 1")
        positive("generator", self, "sigma_data", "noise_std", "local_steps", "batch_size", "learning_rate")
        positive("generator", self, "images_per_patient", "sampler_steps", "norm_groups")


@dataclass(frozen=True, kw_only=True)
class SegmenterSettings:
    """The denoiser's network with a segmentation head, fine-tuned end to end (PTDR)."""

    rounds: int = 2  # 0: no segmenter
    local_steps: int = 50
    batch_size: int = 16
    learning_rate: float = 1e-3
    noise_level: float = 0.1  # sigma told to the network
    images_per_patient: int = 4

    def __post_init__(self) -> None:
        require(self.rounds >= 0, "segmenter.rounds", self.rounds, "at least 0")
        positive("segmenter", self, "local_steps", "batch_size", "learning_rate", "noise_level", "images_per_patient")


@dataclass(frozen=True, kw_only=True)
class PrivacySettings:
    """What is promised to each patient of each site, and the mechanism that keeps it."""

    mode: Literal["patient", "none"] = "patient"
    epsilon: float = 10.0  # for the whole run: all stages together
    delta: float = 1e-5
    clip_norm: float = 1.0
    sample_rate: float = 0.05  # Poisson, of patients
    generator_steps: int = 10  # DP-SGD steps a round at each site
    segmenter_steps: int = 10
    learning_rate: float = 2e-3  # of DP-SGD
    noise_draws: int = 4  # K, averaged before clipping
    engine: Literal["reference", "opacus"] = "reference"
    precision: Literal["fp32", "bf16"] = "fp32"  # of the gradients by patient; norms and sums are in double precision

    def __post_init__(self) -> None:
        require(self.epsilon > 0, "privacy.epsilon", self.epsilon, "above 0")
        require(0 < self.delta < 1, "privacy.delta", self.delta, "between 0 and 1")
        require(0 < self.sample_rate <= 1, "privacy.sample_rate", self.sample_rate, "above 0 and at most 1")
        positive("privacy", self, "clip_norm", "generator_steps", "segmenter_steps", "learning_rate", "noise_draws")


@dataclass(frozen=True, kw_only=True)
class FederationSettings:
    """How the server combines what sites send, and how long it waits."""

    strategy: Literal["fedavg", "fedadam", "fedprox"] = "fedavg"
    server_learning_rate: float = 0.01  # fedadam
    proximal_mu: float = 0.01  # fedprox
    min_sites: int = 2  # quorum of usable replies a round
    max_update_norm: float = 1e4  # of a reply minus the global weights; above it the reply is rejected
    join_seconds: float = 120.0
    round_seconds: float = 3600.0
    client_cpus: int = 1
    client_gpus: float = 0.0  # share of a GPU for each simulated site

    def __post_init__(self) -> None:
        positive("federation", self, "min_sites", "max_update_norm", "join_seconds", "round_seconds", "client_cpus")


@dataclass(frozen=True, kw_only=True)
class EmissionSettings:
    """The synthetic set at the end of a study."""

    count: int = 400
    batch_size: int = 64

    def __post_init__(self) -> None:
        positive("emission", self, "count", "batch_size")


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """What the synthetic set is worth, measured on held-out cases."""

    enabled: bool = True
    seeds: int = 3
    classifier_steps: int = 300
    segmenter_steps: int = 200
    max_cases: int = 2000
    prior_labels: tuple[
        str, ...
    ] = ()  # phantom class that stands for each class in the row "prior alone"; empty: same names

    def __post_init__(self) -> None:
        positive("evaluation", self, "seeds", "classifier_steps", "segmenter_steps", "max_cases")


@dataclass(frozen=True, kw_only=True)
class RuntimeSettings:
    """Where the arithmetic runs."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = 1  # at a site
    server_threads: int = 2


@dataclass(frozen=True, kw_only=True)
class LedgerSettings:
    """Where simulated sites keep their ledgers; empty: in the run folder."""

    root: str = ""


@dataclass(frozen=True, kw_only=True)
class FaultSettings:
    """A fault to inject at a simulated site, for rehearsals: that site raises in that generator round."""

    site: str = ""
    round: int = 0


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Every setting of a study, resolved."""

    study: str = "demo"
    seed: int = 0
    rounds: int = 4
    smoke: bool = False
    out: str = ""  # the run folder; empty: runs/STUDY-SEED
    backend: Literal["in-process", "flower", "deployment"] = "in-process"
    data: DataSettings = field(default_factory=DataSettings)
    generator: GeneratorSettings = field(default_factory=GeneratorSettings)
    segmenter: SegmenterSettings = field(default_factory=SegmenterSettings)
    privacy: PrivacySettings = field(default_factory=PrivacySettings)
    federation: FederationSettings = field(default_factory=FederationSettings)
    emission: EmissionSettings = field(default_factory=EmissionSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    runtime: RuntimeSettings = field(default_factory=RuntimeSettings)
    ledger: LedgerSettings = field(default_factory=LedgerSettings)
    fault: FaultSettings = field(default_factory=FaultSettings)

    def __post_init__(self) -> None:
        positive("settings", self, "rounds")

    @property
    def private(self) -> bool:
        return self.privacy.mode == "patient"

    @property
    def simulated(self) -> bool:
        """All sites' data are public and at hand, so the server may look at them."""
        return self.backend != "deployment"

    def to_mapping(self) -> dict[str, Any]:
        """Plain dicts, lists and scalars, as written to settings.yaml."""
        return typing.cast(dict[str, Any], plain(asdict(self)))

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> "Settings":
        return from_mapping(cls, mapping)
