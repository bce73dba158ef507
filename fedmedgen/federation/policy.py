"""The site's own limits, read from the site's own file; no message can widen them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from fedmedgen.errors import PolicyError
from fedmedgen.federation.plan import GENERATOR, SEGMENTER, stages
from fedmedgen.privacy.budget import Plan
from fedmedgen.schema import from_mapping, plain, require
from fedmedgen.settings import ColumnSettings, Settings


@dataclass(frozen=True, kw_only=True)
class SitePolicy:
    """What one site allows, for its lifetime: written by a person at the site.

    `patients_declared` and `labelled_declared` (patients with masks) are public figures, at least the true counts.
    `simulation` is for public data only: it seeds the noise and lets losses out.
    """

    site: str
    folder: str  # the ledger, its head, its key and stored replies
    patients_declared: int
    labelled_declared: int
    lifetime_epsilon: float
    lifetime_delta: float
    data_root: str = ""  # the site's radiographs: no request can choose them; empty in simulations alone
    data_columns: ColumnSettings = field(default_factory=ColumnSettings)
    smallest_noise_multiplier: float = 0.3
    smallest_clip_norm: float = 1e-6  # below it the rounding of numbers weighs more than the bound
    largest_clip_norm: float = 10.0
    largest_sample_rate: float = 0.5
    largest_steps: int = 20_000
    largest_rounds: int = 500
    largest_parameters: int = 20_000_000
    largest_rows_per_patient: int = 256  # images x noise draws
    largest_pixels: int = 512 * 512
    threads: int = 1
    unit: Literal["patient", "image"] = "patient"  # of the claim; "image" where ids are missing
    simulation: bool = False
    no_privacy_allowed: bool = False

    def __post_init__(self) -> None:
        require(self.patients_declared >= 1, "patients_declared", self.patients_declared, "at least 1")
        require(self.lifetime_epsilon > 0, "lifetime_epsilon", self.lifetime_epsilon, "above 0")
        require(self.simulation or bool(self.data_root), "data_root", self.data_root, "the path of the site's own data")
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

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> "SitePolicy":
        return from_mapping(cls, mapping, "policy")

    @classmethod
    def read(cls, path: Path) -> "SitePolicy":
        if not path.is_file():
            raise PolicyError(f"expected the site's policy at {path}; there is none: write one, or name another file")
        policy = cls.from_mapping(yaml.safe_load(path.read_text()) or {})
        beside = path.resolve().parent
        root = str(beside / policy.data_root) if policy.data_root else ""
        return replace(policy, folder=str(beside / policy.folder), data_root=root)

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(plain(asdict(self)), sort_keys=False))


def check_request(policy: SitePolicy, settings: Settings, *, parameters: int, stage: str = GENERATOR) -> None:
    """Refuse, before anything is built or read, a request outside the site's limits.

    **Raises** `PolicyError` naming the limit, what was asked, and that only the site's own file can change it.
    """
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
    images = max(settings.generator.images_per_patient, settings.segmenter.images_per_patient)
    _at_most("rows per patient", settings.privacy.noise_draws * images, policy.largest_rows_per_patient)
    _at_most("pixels", settings.data.size[0] * settings.data.size[1], policy.largest_pixels)
    if not settings.private:
        if not policy.no_privacy_allowed:
            raise PolicyError("the study asks for privacy=none; this site's policy allows it in simulations only")
        return
    _at_most("clip norm", settings.privacy.clip_norm, policy.largest_clip_norm)
    if settings.privacy.clip_norm < policy.smallest_clip_norm:
        raise PolicyError(
            f"the request's clip norm is {settings.privacy.clip_norm:g}; the site's smallest is "
            f"{policy.smallest_clip_norm:g}"
        )
    _at_most("sample rate", settings.privacy.sample_rate, policy.largest_sample_rate)


def check_plan(policy: SitePolicy, plan: Plan) -> None:
    """Refuse a plan whose mechanism or claim is weaker than the site allows."""
    for stage in plan.stages:
        if not stage.noise_multiplier >= policy.smallest_noise_multiplier:
            raise PolicyError(
                f"the request's noise multiplier for {stage.name} is {stage.noise_multiplier:g}; "
                f"the site's smallest is {policy.smallest_noise_multiplier:g}"
            )
    _at_most("delta", plan.delta, policy.lifetime_delta)
    _at_most("epsilon of the plan", plan.epsilon, policy.lifetime_epsilon)


def _at_most(what: str, asked: float, largest: float) -> None:
    if not asked <= largest:
        raise PolicyError(f"the request's {what} is {asked:g}; the site's policy allows at most {largest:g}")
