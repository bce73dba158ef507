"""The site's own limits, read from the site's own file; no message can widen them."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from fedmedgen.errors import BudgetError, PolicyError
from fedmedgen.federation import records
from fedmedgen.federation.plan import GENERATOR, SEGMENTER, largest_layer, stages
from fedmedgen.federation.secure_policy import SecureSumPolicy
from fedmedgen.gate_settings import AuditSettings
from fedmedgen.privacy.budget import Plan
from fedmedgen.privacy.ledger import head_beside
from fedmedgen.release_settings import PriorSettings
from fedmedgen.schema import from_mapping, plain, require
from fedmedgen.settings import ColumnSettings, DataSettings, FaultSettings, LedgerSettings, RuntimeSettings, Settings

MOST_DRAWN = 1024  # images that a GAN's decoder draws in one private step
LARGEST_RATE = 1e6  # of learning and of FedProx's pull


@dataclass(frozen=True, kw_only=True)
class SitePolicy:
    """What one site allows, for its lifetime: written by a person at the site.

    `patients_declared` and `labelled_declared` (patients with masks) are public figures, at least the true counts.
    `simulation` is for public data only: it seeds the noise and lets losses out.
    """

    site: str
    folder: str  # the ledger, its key and stored replies
    patients_declared: int
    labelled_declared: int
    lifetime_epsilon: float
    lifetime_delta: float
    ledger_head: str = ""  # the ledger's head, best on another disk: no one restore then takes both; empty: in `folder`
    data_root: str = ""  # the site's radiographs: no request can choose them; empty in simulations alone
    data_layout: Literal["images", "folders", "dicom", "npz"] = "images"  # said, not guessed from what lies there
    mask_suffix: str = ".png"  # a mask has its picture's name with this suffix
    data_columns: ColumnSettings = field(default_factory=ColumnSettings)
    smallest_noise_multiplier: float = 0.3
    smallest_clip_norm: float = 1e-6  # below it the rounding of numbers weighs more than the bound
    largest_clip_norm: float = 10.0
    largest_sample_rate: float = 0.5
    smallest_sample_rate: float = 1e-5  # this one and the next keep the accountant's grids small
    largest_noise_multiplier: float = 1e4
    largest_steps: int = 20_000
    largest_rounds: int = 500
    largest_parameters: int = 20_000_000
    largest_layers: int = 64  # levels x layers of each
    largest_levels: int = 6
    largest_classes: int = 256  # of images, and of masks
    largest_side: int = 1024  # of an image, in pixels
    largest_layer: int = 2**25  # numbers in one layer's output for one patient
    largest_rows_per_patient: int = 256  # images x noise draws
    largest_pixels: int = 512 * 512
    largest_statistics: int = 1_000_000  # numbers in the one vector that the statistics release; 0: none may be asked
    largest_dimension: int = 4096  # coefficients of an image
    audit_canaries: int = 0  # planted in every run, to measure what it gives away
    audit_kind: Literal["directions", "images"] = "directions"
    audit_holdout: float = 0.0  # share of the patients that never take part, for audits to compare with
    threads: int = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"
    kernel_cache: str = ""  # file where the fused engine keeps the fastest kernels, measured once; empty: by a rule
    bundles: tuple[str, ...] = ()  # SHA-256 of the app bundles that may run here
    unit: Literal["patient", "image"] = "patient"  # of the claim; "image" where ids are missing
    simulation: bool = False
    no_privacy_allowed: bool = False
    secure_sum: SecureSumPolicy = field(default_factory=SecureSumPolicy)

    def __post_init__(self) -> None:
        name = records.NAME_OF_A_SITE
        require(bool(re.fullmatch(name, self.site)), "site", self.site, f"of the form {name}")
        require(self.patients_declared >= 1, "patients_declared", self.patients_declared, "at least 1")
        require(self.audit_canaries >= 0, "audit_canaries", self.audit_canaries, "at least 0")
        require(0 <= self.audit_holdout < 1, "audit_holdout", self.audit_holdout, "from 0 to below 1")
        require(self.lifetime_epsilon > 0, "lifetime_epsilon", self.lifetime_epsilon, "above 0")
        require(self.simulation or bool(self.data_root), "data_root", self.data_root, "the path of the site's own data")
        odd = [digest for digest in self.bundles if not re.fullmatch("[0-9a-f]{64}", digest)]
        require(not odd, "bundles", odd, "SHA-256 hashes of app bundles, 64 lower-case hexadecimal digits each")
        largest = 1 / (10 * self.patients_declared)
        require(
            self.simulation or 0 < self.lifetime_delta <= largest,
            "lifetime_delta",
            self.lifetime_delta,
            f"at most {largest:.2g}, one tenth of 1 / patients_declared",
        )
        require(
            self.simulation or not self.no_privacy_allowed,
            "no_privacy_allowed",
            self.no_privacy_allowed,
            "false unless the site is a simulation on public data",
        )

    @property
    def ledger_path(self) -> Path:
        return Path(self.folder) / "ledger.jsonl"

    @property
    def head_path(self) -> Path:
        return Path(self.ledger_head) if self.ledger_head else head_beside(self.ledger_path)

    @property
    def key_path(self) -> Path:
        return Path(self.folder) / "site.key"

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> "SitePolicy":
        return from_mapping(cls, mapping, "policy")

    @classmethod
    def read(cls, path: Path) -> "SitePolicy":
        if not path.is_file():
            raise PolicyError(f"expected the site's policy at {path}; there is none: write one, or name another file")
        try:
            mapping = yaml.safe_load(path.read_text()) or {}
        except (OSError, UnicodeError, yaml.YAMLError) as error:
            raise PolicyError(f"the site's policy at {path} can't be read: {error}") from error
        policy = cls.from_mapping(mapping)
        beside = path.resolve().parent
        named = (policy.data_root, policy.ledger_head, policy.kernel_cache, policy.secure_sum.identity)
        root, head, kernels, identity = (str(beside / name) if name else "" for name in named)
        secure, folder = replace(policy.secure_sum, identity=identity), str(beside / policy.folder)
        paths = {"folder": folder, "data_root": root, "ledger_head": head, "kernel_cache": kernels}
        return replace(policy, **paths, secure_sum=secure)  # type: ignore[arg-type]

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(plain(asdict(self)), sort_keys=False))

    def on_own_machine(self, settings: Settings) -> Settings:
        """A study's settings with this site's device and threads; a simulated site runs where the study says."""
        own = RuntimeSettings(device=self.device, threads=self.threads)
        return settings if self.simulation else replace(settings, runtime=own)

    def public(self, stage: str = GENERATOR) -> dict[str, str | float]:
        """What may leave the site as public, by key: words and figures of this file, whatever the data hold."""
        weight = self.labelled_declared if stage == SEGMENTER else self.patients_declared
        return {
            records.SITE: self.site,
            records.UNIT: self.unit,
            records.SIMULATION: "yes" if self.simulation else "no",
            records.PATIENTS: float(self.patients_declared),
            records.LABELLED: float(self.labelled_declared),
            records.WEIGHT: float(weight),
        }


def for_real_sites(settings: Settings) -> Settings:
    """What a request may tell a real site: the network, its input, the training and the mechanism.

    Paths, splits, columns, devices, smallest numbers and rehearsed faults are a simulation's, or stand in the site's
    own file.
    """
    asked = settings.data
    data = DataSettings(classes=asked.classes, mask_classes=asked.mask_classes, size=asked.size, fit=asked.fit)
    own = replace(
        settings, ledger=LedgerSettings(), fault=FaultSettings(), runtime=RuntimeSettings(), audit=AuditSettings()
    )
    return replace(own, backend="deployment", out="", data=data, prior=PriorSettings())


def check_request(policy: SitePolicy, settings: Settings, *, parameters: int, stage: str = GENERATOR) -> None:
    """Refuse, before anything is built or read, a request outside the site's limits.

    Learning rates are bounded for sense alone: they work on what was released, so no value of them touches the promise.

    **Raises** `PolicyError` naming the limit, what was asked, and that only the site's own file can change it.
    """
    if not policy.simulation:
        _refuse_a_simulations(settings.to_mapping(), for_real_sites(settings).to_mapping())
    known = [item.name for item in stages(settings)]
    if stage not in known:
        raise PolicyError(f"the request names the stage {stage!r}; the study has {', '.join(known)}")
    if stage == SEGMENTER and not policy.labelled_declared:
        raise PolicyError("the request is for the segmenter; this site declares no patient with masks")
    rounds = sum(stage.rounds for stage in stages(settings))
    steps = sum(stage.total_steps for stage in stages(settings))
    _at_most("rounds", rounds, policy.largest_rounds)
    _at_most("steps", steps, policy.largest_steps)
    _at_most("parameters", parameters, policy.largest_parameters)
    network, data = settings.generator, settings.data
    _at_most("levels", max(len(network.channels), len(settings.autoencoder.channels)), policy.largest_levels)
    _at_most("layers", max(len(network.channels) * network.layers_per_block, network.depth), policy.largest_layers)
    _at_most("classes", max(len(data.classes), len(data.mask_classes)), policy.largest_classes)
    _at_most("learning rate", max(stage.learning_rate for stage in stages(settings)), LARGEST_RATE)
    images = max(settings.generator.images_per_patient, settings.segmenter.images_per_patient)
    _at_most("rows per patient", settings.privacy.noise_draws * images, policy.largest_rows_per_patient)
    _at_most("pixels", data.size[0] * data.size[1], policy.largest_pixels)
    _at_most("side in pixels", max(data.size), policy.largest_side)
    _at_most("numbers in one layer", largest_layer(settings, images), policy.largest_layer)
    if not settings.private:
        if not policy.no_privacy_allowed:
            raise PolicyError("the study asks for privacy=none; this site's policy allows it in simulations only")
        return
    if network.family == "gan":  # each of them is a gradient of its own
        _at_most("drawn images a step", network.batch_size, MOST_DRAWN)
    _at_most("clip norm", settings.privacy.clip_norm, policy.largest_clip_norm)
    _at_least("clip norm", settings.privacy.clip_norm, policy.smallest_clip_norm)
    _at_most("sample rate", settings.privacy.sample_rate, policy.largest_sample_rate)
    _at_least("sample rate", settings.privacy.sample_rate, policy.smallest_sample_rate)


def check_statistics(policy: SitePolicy, *, dimension: int, size: int) -> None:
    """Refuse a basis or a vector larger than the site allows, before anything of its size is built.

    **Raises** `PolicyError` naming the limit and what was asked.
    """
    _at_most("dimension", dimension, policy.largest_dimension)
    _at_most("size of the statistics", size, policy.largest_statistics)


def check_plan(policy: SitePolicy, plan: Plan) -> None:
    """Refuse a plan whose mechanism or claim is weaker than the site allows."""
    for stage in plan.stages:
        _at_least(f"noise multiplier for {stage.name}", stage.noise_multiplier, policy.smallest_noise_multiplier)
        _at_most(f"noise multiplier for {stage.name}", stage.noise_multiplier, policy.largest_noise_multiplier)
    _at_most("delta", plan.delta, policy.lifetime_delta)
    if plan.shared:
        _at_most("epsilon if all others collude", plan.epsilon_alone, policy.secure_sum.lifetime_epsilon_alone)
    try:
        plan.require_within(policy.lifetime_epsilon)
    except BudgetError as error:
        raise PolicyError(f"the request doesn't fit this site's lifetime epsilon: {error}") from error


def _at_most(what: str, asked: float, largest: float) -> None:
    if not asked <= largest:
        raise PolicyError(f"the request's {what} is {str(asked)[:20]}; the site's policy allows at most {largest:g}")


def _at_least(what: str, asked: float, smallest: float) -> None:
    if not asked >= smallest:
        raise PolicyError(f"the request's {what} is {str(asked)[:20]}; the site's smallest is {smallest:g}")


def _refuse_a_simulations(asked: Mapping[str, Any], allowed: Mapping[str, Any], path: str = "") -> None:
    """Refuse the first setting that differs from what a real site may be told."""
    for key, value in asked.items():
        if isinstance(value, Mapping):
            _refuse_a_simulations(value, allowed[key], f"{path}{key}.")
        elif value != allowed[key]:
            raise PolicyError(
                f"the request sets {path}{key} to {value!r}, as only a simulation may: here the site's own file decides"
            )
