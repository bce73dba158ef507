"""A run folder: settings, a checkpoint each round, rows, progress, result; and how an interrupted run goes on."""

import csv
import hashlib
import json
import logging
import math
import os
import resource
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from fedmedgen.errors import RunError
from fedmedgen.federation.messages import deciding
from fedmedgen.settings import Settings
from fedmedgen.training.checkpoints import load_arrays, save_arrays

logger = logging.getLogger(__name__)
CHECKPOINT, BEFORE, MEMBERS, RUN_NAME = "checkpoint.json", "checkpoint-before.json", "members.json", "run"
Arrays = dict[str, NDArray[np.float32]]
COLUMNS = (
    "stage", "round", "site", "status", "reason", "patients_declared", "epsilon", "loss",
    "bytes_up", "bytes_down", "bits_per_number", "seconds", "update_norm",
)  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    """All that the server needs to go on after a round: named groups of arrays, and rows already written."""

    stage: str
    round: int
    groups: dict[str, Arrays]
    rows: list[dict[str, Any]]
    seconds: float


@dataclass
class RunStore:
    """The files of one run. Every write is whole or absent: a killed server leaves the last finished round."""

    folder: Path
    settings: Settings
    run: str

    @classmethod
    def create(cls, settings: Settings) -> "RunStore":
        """A new run folder at `settings.out`.

        **Raises** `RunError` where a run stands there already.
        """
        folder = Path(settings.out)
        if (folder / "checkpoint.json").exists() or (folder / "result.json").exists():
            raise RunError(f"{folder} already holds a run: go on with it by --resume, or name another --out")
        folder.mkdir(parents=True, exist_ok=True)
        store = cls(folder, settings, run_name(settings))
        store.write_settings()
        write_text(folder / RUN_NAME, store.run + "\n")
        return store

    @classmethod
    def reopen(cls, folder: Path, *, backend: str = "") -> "RunStore":
        """A run to go on with, under the settings it was started with; another backend may carry it.

        **Raises** `RunError` where there is none.
        """
        known = folder / "settings.yaml"
        if not known.is_file():
            raise RunError(f"expected a run to resume at {folder}; there is no settings.yaml")
        mapping = yaml.safe_load(known.read_text())
        settings = Settings.from_mapping({**mapping, "out": str(folder), "backend": backend or mapping["backend"]})
        name = folder / RUN_NAME
        return cls(folder, settings, name.read_text().strip() if name.is_file() else run_name(settings))

    def write_settings(self) -> None:
        write_text(self.folder / "settings.yaml", yaml.safe_dump(self.settings.to_mapping(), sort_keys=False))

    def save(self, checkpoint: Checkpoint) -> None:
        """Make a finished round durable: arrays first, then the words that name them, then older arrays go.

        The round before is kept, for a disk that spoils what it wrote.
        """
        name = f"{checkpoint.stage}-{checkpoint.round}.safetensors"
        folder = self.folder / "checkpoint"
        flat = {
            f"{group}/{key}": torch.from_numpy(np.array(value))
            for group, arrays in checkpoint.groups.items()
            for key, value in arrays.items()
        }
        save_arrays(folder / name, flat)
        words = {
            "stage": checkpoint.stage,
            "round": checkpoint.round,
            "arrays": name,
            "sha256": sha256_of(folder / name),
            "rows": checkpoint.rows,
            "seconds": checkpoint.seconds,
        }
        before = self._whole(CHECKPOINT)
        if before and before["arrays"] != name:
            write_text(self.folder / BEFORE, json.dumps(before))
        write_text(self.folder / CHECKPOINT, json.dumps(words))
        self.write_rows(checkpoint.rows)
        for old in folder.glob("*.safetensors"):
            if old.name not in (name, before and before["arrays"]):
                old.unlink()

    def latest(self) -> Checkpoint | None:
        """The last finished round, or the one before where the last one's files are spoiled.

        **Raises** `RunError` where none of what was kept is whole.
        """
        if not (self.folder / CHECKPOINT).is_file():
            return None
        words = self._whole(CHECKPOINT)
        if words is None:
            words = self._whole(BEFORE)
            logger.warning("%s: the last checkpoint is spoiled; going on from the one before", self.folder)
        if words is None:
            raise RunError(f"the checkpoints in {self.folder} are spoiled: restore them, or begin the study anew")
        groups: dict[str, Arrays] = {}
        for key, value in load_arrays(self.folder / "checkpoint" / words["arrays"]).items():
            group, _, name = key.partition("/")
            groups.setdefault(group, {})[name] = value.numpy()
        return Checkpoint(words["stage"], words["round"], groups, words["rows"], words["seconds"])

    def _whole(self, name: str) -> dict[str, Any] | None:
        """A checkpoint's words, if they can be read and its arrays are what was written."""
        try:
            words: dict[str, Any] = json.loads((self.folder / name).read_text())
            good = sha256_of(self.folder / "checkpoint" / words["arrays"]) == words["sha256"]
        except (OSError, ValueError, LookupError, TypeError):
            return None
        return words if good else None

    def latest_of(self, stage: str) -> Checkpoint | None:
        """The last checkpoint, if it is of this stage."""
        found = self.latest()
        return found if found is not None and found.stage == stage else None

    def write_members(self, members: Sequence[Mapping[str, Any]]) -> None:
        """Every site that has ever taken part, so that none is forgotten which is away when the run goes on."""
        write_text(self.folder / MEMBERS, json.dumps(list(members), indent=2))

    def members(self) -> list[dict[str, Any]]:
        """**Raises** `RunError` where the file is spoiled."""
        if not (self.folder / MEMBERS).is_file():
            return []
        try:
            return [dict(entry) for entry in json.loads((self.folder / MEMBERS).read_text())]
        except (ValueError, TypeError) as error:
            raise RunError(f"{self.folder / MEMBERS} is spoiled: restore it, or begin the study anew") from error

    def report_progress(self, **words: Any) -> None:
        """One line of state for whoever watches the run."""
        write_text(self.folder / "progress.json", json.dumps(words), durable=False)

    def write_result(self, result: dict[str, Any]) -> None:
        usage = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        write_text(
            self.folder / "result.json", json.dumps(finite({**result, "peak_rss_mb": round(usage / 1024)}), indent=2)
        )

    def write_rows(self, rows: list[dict[str, Any]]) -> None:
        path = self.folder / "rounds.csv"
        with path.with_suffix(".draft").open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
        path.with_suffix(".draft").replace(path)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def finite(value: Any) -> Any:
    """The value with null for numbers that JSON doesn't know."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def run_name(settings: Settings) -> str:
    """Names a run by what decides its result; the backend that carries it, and its paths, don't."""
    mapping = deciding(settings)
    mapping.pop("fault")
    mapping["data"].pop("classes")  # may be found in the data only after the run has begun
    digest = hashlib.sha256(json.dumps(mapping, sort_keys=True).encode()).hexdigest()
    return f"{settings.study}-{settings.seed}-{digest[:12]}"


def write_text(path: Path, text: str, *, durable: bool = True) -> None:
    """Replace a file as a whole; durable: on the disk before this returns."""
    draft = path.with_name(path.name + ".draft")
    with draft.open("w") as file:
        file.write(text)
        file.flush()
        if durable:
            os.fsync(file.fileno())
    draft.replace(path)
