"""What a run folder says: settings, result, rounds and synthetic cases, read back for the report."""

import csv
import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fedmedgen.audit.identity import folder_hash
from fedmedgen.data import phantoms, sources
from fedmedgen.data.cases import CaseSet
from fedmedgen.errors import FedmedgenError, RunError
from fedmedgen.reporting.measures import of_set, without_sites
from fedmedgen.seeds import seed_of
from fedmedgen.settings import DataSettings, Settings

log = logging.getLogger(__name__)

PHANTOMS_DRAWN = 300


@dataclass(frozen=True, kw_only=True)
class Round:
    """One row of rounds.csv; None where the run says nothing."""

    stage: str
    round: int
    site: str
    status: str
    reason: str
    epsilon: float | None
    loss: float | None
    bytes_up: float
    bytes_down: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Record:
    """Everything the report is drawn from."""

    folder: Path
    settings: Settings
    result: Mapping[str, Any]
    rounds: tuple[Round, ...]
    synthetic: CaseSet | None
    phantoms: CaseSet | None

    @property
    def shows_sites(self) -> bool:
        """Whether loss and data of sites may be drawn: only in a simulation on public data."""
        return bool(self.result.get("simulation")) and bool(self.result.get("public_data"))

    @property
    def metrics(self) -> Mapping[str, Any]:
        """What was measured; of data that is not public, without what tells about single sites."""
        found = self.part("metrics")
        return found if self.shows_sites else without_sites(found)

    def part(self, name: str) -> Mapping[str, Any]:
        """A group of result.json, empty if absent."""
        found = self.result.get(name)
        return found if isinstance(found, Mapping) else {}


def read(run: Path) -> Record:
    """The record of a run folder.

    **Raises** `RunError` if settings.yaml or result.json is missing or can't be read.
    """
    settings = Settings.from_mapping(_mapping(run / "settings.yaml"))
    result = dict(_mapping(run / "result.json"))
    result["metrics"] = _measured(run, result.get("metrics") or {})
    synthetic = _synthetic(run / "synthetic", settings)
    return Record(
        folder=run,
        settings=settings,
        result=result,
        rounds=_rounds(run / "rounds.csv"),
        synthetic=synthetic,
        phantoms=_phantoms(settings, synthetic) if synthetic is not None else None,
    )


def _measured(run: Path, own: Mapping[str, Any]) -> Mapping[str, Any]:
    """The run's own measures, and those that `fedmedgen evaluate` left of the same set."""
    if not (run / "synthetic").is_dir():
        return own
    present = folder_hash(run / "synthetic")
    later = _mapping(run / "metrics.json") if (run / "metrics.json").is_file() else {}
    for found, where in ((own, "result.json"), (later, "metrics.json")):
        if found.get("set", present) != present:
            log.warning("%s of %s measured another set than lies there: it is left out", where, run)
    return of_set({"set": present} | dict(own), later, present)


def _mapping(file: Path) -> Mapping[str, Any]:
    if not file.is_file():
        raise RunError(f"expected {file.name} in the run folder {file.parent}; it isn't there: is this a finished run?")
    try:
        text = file.read_text(encoding="utf-8")
        found = json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        raise RunError(f"can't read {file.name} of the run folder {file.parent}: {error}") from error
    if not isinstance(found, Mapping):
        raise RunError(f"expected a mapping in {file.name} of the run folder {file.parent}; got {type(found).__name__}")
    return found


def _rounds(file: Path) -> tuple[Round, ...]:
    if not file.is_file():
        return ()
    with file.open(newline="", encoding="utf-8") as stream:
        return tuple(_round(row) for row in csv.DictReader(stream))


def _round(row: Mapping[str, str]) -> Round:
    return Round(
        stage=row.get("stage") or "",
        round=int(_number(row.get("round")) or 0),
        site=row.get("site") or "",
        status=row.get("status") or "",
        reason=row.get("reason") or "",
        epsilon=_number(row.get("epsilon")),
        loss=_number(row.get("loss")),
        bytes_up=_number(row.get("bytes_up")) or 0.0,
        bytes_down=_number(row.get("bytes_down")) or 0.0,
        seconds=_number(row.get("seconds")) or 0.0,
    )


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "nan")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _synthetic(folder: Path, settings: Settings) -> CaseSet | None:
    if not folder.is_dir():
        return None
    data = DataSettings(
        root=str(folder),
        classes=settings.data.classes,
        mask_classes=settings.data.mask_classes,
        size=settings.data.size,
        min_patients=1,
    )
    try:
        return sources.load(data, seed=settings.seed)
    except FedmedgenError as error:
        log.warning("the report shows no samples: %s", error)
        return None


def _phantoms(settings: Settings, synthetic: CaseSet) -> CaseSet | None:
    classes = settings.evaluation.prior_labels or synthetic.classes
    try:
        return phantoms.prior(
            PHANTOMS_DRAWN, data=settings.data, classes=classes, seed=seed_of(settings.seed, "report")
        )
    except FedmedgenError as error:
        log.info("the report shows no phantoms: %s", error)
        return None
