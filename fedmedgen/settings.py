"""The one schema of settings: frozen dataclasses, built from any mapping at the border.

Names, defaults and bounds stand here; `conf/` gives each study its values. An unknown key is an error that names
the nearest known one.
"""

import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from fedmedgen.data_settings import ColumnSettings as ColumnSettings
from fedmedgen.data_settings import DataSettings as DataSettings
from fedmedgen.data_settings import PhantomSettings as PhantomSettings
from fedmedgen.gate_settings import AuditSettings, GateSettings
from fedmedgen.generator_settings import GeneratorSettings as GeneratorSettings
from fedmedgen.release_settings import AutoencoderSettings as AutoencoderSettings
from fedmedgen.release_settings import CurriculumSettings, PriorSettings, StatisticsSettings, check_release
from fedmedgen.schema import from_mapping, plain, positive, require
from fedmedgen.sum_settings import SecureSumSettings, check_shared

EVALUATION_ROWS = ("tstr", "trtr", "real_and_synthetic", "cheap", "prior", "best_site")


@dataclass(frozen=True, kw_only=True)
class SegmenterSettings:
    """The denoiser's network with a segmentation head, fine-tuned end to end (PTDR)."""

    rounds: int = 2  # 0: no segmenter
    local_steps: int = 50
    batch_size: int = 16
    learning_rate: float = 1e-3
    noise_level: float = 0.1  # sigma told to the network
    images_per_patient: int = 4
    warp: bool = False  # vary position, angle, size and gamma in training
    foreground_weight: float = 1.0  # of a foreground pixel in the cross-entropy; more of it for small lesions
    dice_weight: float = 1.0  # of the soft Dice beside the cross-entropy; 0 where most cases have nothing to find

    def __post_init__(self) -> None:
        require(self.rounds >= 0, "segmenter.rounds", self.rounds, "at least 0")
        positive("segmenter", self, "local_steps", "batch_size", "learning_rate", "noise_level", "images_per_patient")
        positive("segmenter", self, "foreground_weight")
        require(self.dice_weight >= 0, "segmenter.dice_weight", self.dice_weight, "at least 0")


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
    engine: Literal["reference", "opacus", "fused"] = "reference"
    precision: Literal["fp32", "bf16"] = "fp32"  # of the gradients by patient; norms and sums are in double precision

    def __post_init__(self) -> None:
        require(self.epsilon > 0, "privacy.epsilon", self.epsilon, "above 0")
        require(0 < self.delta < 1, "privacy.delta", self.delta, "between 0 and 1")
        require(0 < self.sample_rate <= 1, "privacy.sample_rate", self.sample_rate, "above 0 and at most 1")
        positive("privacy", self, "clip_norm", "generator_steps", "segmenter_steps", "learning_rate", "noise_draws")


@dataclass(frozen=True, kw_only=True)
class FederationSettings(SecureSumSettings):
    """How the server combines what sites send, and how long it waits."""

    strategy: Literal["fedavg", "fedadam", "fedprox"] = "fedavg"
    server_learning_rate: float = 0.01  # fedadam
    proximal_mu: float = 0.01  # fedprox
    min_sites: int = 2  # quorum of usable replies a round
    max_update_norm: float = 1e4  # of a reply minus the global weights; above it the reply is rejected
    join_seconds: float = 120.0
    round_seconds: float = 3600.0
    personal: Literal["none", "norms", "last-block"] = "none"  # of the generator: trained at each site, never sent
    client_cpus: int = 1
    client_gpus: float = 0.0  # share of a GPU for each simulated site

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("federation", self, "min_sites", "max_update_norm", "join_seconds", "round_seconds", "client_cpus")


@dataclass(frozen=True, kw_only=True)
class EmissionSettings:
    """The synthetic set at the end of a study."""

    count: int = 400
    batch_size: int = 32  # the fastest on a core: docs/results/sampling.md
    precision: Literal["fp32", "bf16"] = "fp32"  # of a diffusion network's calls; bf16 is half as fast again

    def __post_init__(self) -> None:
        positive("emission", self, "count", "batch_size")


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """What the synthetic set is worth, measured on held-out cases."""

    enabled: bool = True
    seeds: int = 3
    classifier_steps: int = 300
    segmenter_steps: int = 200
    max_cases: int = 2000  # a classifier or segmenter is trained on
    fidelity_cases: int = 1000  # of either side
    rows: tuple[str, ...] = ()  # of EVALUATION_ROWS; empty: all
    inception: str = ""  # a TorchScript metric network of the user's own, for FID by it; empty: none
    inception_sha256: str = ""  # of that file, without which it is not run
    prior_labels: tuple[str, ...] = ()  # phantom class that stands for each class; empty: same names

    def __post_init__(self) -> None:
        positive("evaluation", self, "seeds", "classifier_steps", "segmenter_steps", "max_cases", "fidelity_cases")
        odd = sorted(set(self.rows) - set(EVALUATION_ROWS))
        require(not odd, "evaluation.rows", odd, f"of {', '.join(EVALUATION_ROWS[:-1])} and {EVALUATION_ROWS[-1]}")


@dataclass(frozen=True, kw_only=True)
class RuntimeSettings:
    """Where the arithmetic runs."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = 1  # at a site
    server_threads: int = 2
    kernel_cache: str = ""  # file where privacy.engine=fused keeps the fastest kernels, measured once; empty: by a rule


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
    rounds: int = 4  # of the generator; 0: it learns from the curriculum alone
    smoke: bool = False
    out: str = ""  # the run folder; empty: runs/STUDY-SEED
    backend: Literal["in-process", "flower", "deployment"] = "in-process"
    data: DataSettings = field(default_factory=DataSettings)
    generator: GeneratorSettings = field(default_factory=GeneratorSettings)
    segmenter: SegmenterSettings = field(default_factory=SegmenterSettings)
    statistics: StatisticsSettings = field(default_factory=StatisticsSettings)
    prior: PriorSettings = field(default_factory=PriorSettings)
    autoencoder: AutoencoderSettings = field(default_factory=AutoencoderSettings)
    curriculum: CurriculumSettings = field(default_factory=CurriculumSettings)
    privacy: PrivacySettings = field(default_factory=PrivacySettings)
    federation: FederationSettings = field(default_factory=FederationSettings)
    emission: EmissionSettings = field(default_factory=EmissionSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    audit: AuditSettings = field(default_factory=AuditSettings)
    gate: GateSettings = field(default_factory=GateSettings)
    runtime: RuntimeSettings = field(default_factory=RuntimeSettings)
    ledger: LedgerSettings = field(default_factory=LedgerSettings)
    fault: FaultSettings = field(default_factory=FaultSettings)

    def __post_init__(self) -> None:
        moments = self.generator.family == "moments"
        masks = self.segmenter.rounds if self.data.mask_classes else 0
        least = 0 if self.curriculum.steps and masks else 1
        require(self.rounds >= least, "rounds", self.rounds, "at least 1; 0 with a curriculum and a segmenter")
        fused = self.privacy.engine == "fused"
        cache = self.runtime.kernel_cache
        require(not cache or fused, "runtime.kernel_cache", cache, "empty but with privacy.engine=fused")
        check_release(self.statistics, self.curriculum, moments=moments, masks=masks)
        if self.federation.shared:
            steps = self.privacy.generator_steps if self.statistics.share < 1 else 1
            whole = self.generator.whole and self.federation.personal == "none"
            check_shared(steps, whole=whole, masks=masks, private=self.private, canaries=self.audit.canaries)

    @property
    def private(self) -> bool:
        return self.privacy.mode == "patient"

    @property
    def simulated(self) -> bool:
        """All sites' data are public and at hand, so the server may look at them."""
        return self.backend != "deployment"

    @property
    def public_masks(self) -> bool:
        """Whether the mask of each image drawn is that of the nearest public image, not one drawn with it."""
        public = bool(self.prior.roots) or self.prior.phantoms > 0
        return self.generator.family == "moments" and self.prior.nearest and public

    def to_mapping(self) -> dict[str, Any]:
        """Plain dicts, lists and scalars, as written to settings.yaml."""
        return typing.cast(dict[str, Any], plain(asdict(self)))

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> "Settings":
        return from_mapping(cls, mapping)
