"""The table of a grid: a row for each cell and seed that ended, on the disk as soon as it is known."""

import csv
import datetime
import io
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from server.results import COMMIT
from server.run_store import write_text

DONE, FAILED = "completed", "failed"
KEY = ("grid", "cell", "seed", "overrides")
COLUMNS = (
    *KEY, "status", "reason", "attempts", "date", "commit", "machine", "epsilon", "delta", "unit", "accountant",
    "sites", "seconds", "peak_rss_mb", "test_cases",
)  # fmt: skip
TRAINING = ("statistics", "curriculum", "generator", "segmenter")  # stages
RESULTS = "docs/results"  # what a grid writes; it changes nothing that runs
LONGEST_REASON = 300
Row = dict[str, Any]


@dataclass
class Table:
    """The rows of a CSV file, old ones first; whatever a measure is named becomes a column."""

    path: Path
    columns: list[str] = field(default_factory=lambda: list(COLUMNS))
    rows: list[dict[str, str]] = field(default_factory=list)

    @classmethod
    def at(cls, path: Path) -> "Table":
        """The table of a file, empty where there is none; a last line cut short by a kill is dropped."""
        table = cls(path)
        if not path.is_file():
            return table
        text = path.read_text()
        whole = text[: text.rfind("\n") + 1]
        reader = csv.DictReader(io.StringIO(whole))
        table.columns, table.rows = list(reader.fieldnames or COLUMNS), list(reader)
        if whole != text:
            write_text(path, whole)
        return table

    def append(self, row: Row) -> None:
        """One row more, on the disk before this returns; columns that it brings are added to the file."""
        said = {key: _cell(value) for key, value in row.items()}
        new = [key for key in said if key not in self.columns]
        self.columns += new
        self.rows.append(said)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if new or not self.path.is_file() or not self.path.stat().st_size:
            write_text(self.path, _lines(self.columns, self.rows, header=True))
            return
        with self.path.open("a") as file:
            file.write(_lines(self.columns, [said], header=False))
            file.flush()
            os.fsync(file.fileno())

    def of(self, key: Mapping[str, Any]) -> list[dict[str, str]]:
        """All rows of a job, the latest last."""
        wanted = {name: _cell(value) for name, value in key.items()}
        return [row for row in self.rows if all(row.get(name) == value for name, value in wanted.items())]

    def latest(self, key: Mapping[str, Any]) -> dict[str, str] | None:
        found = self.of(key)
        return found[-1] if found else None

    def status(self, key: Mapping[str, Any]) -> str | None:
        """How the job's last attempt ended; None if it never did."""
        row = self.latest(key)
        return row["status"] if row else None

    def attempts(self, key: Mapping[str, Any]) -> int:
        return max((int(row.get("attempts") or 1) for row in self.of(key)), default=0)


def _lines(columns: list[str], rows: list[dict[str, str]], *, header: bool) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def finished_row(result: Mapping[str, Any]) -> Row:
    """What a result says, flat: the claim, the cost, and every measure that is there."""
    privacy = result.get("privacy", {})
    return {
        "status": DONE,
        "reason": "",
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        **{key: privacy.get(key) for key in ("epsilon", "delta", "unit", "accountant")},
        "sites": len(result.get("sites", {})),
        "seconds": result.get("seconds"),
        "peak_rss_mb": result.get("peak_rss_mb"),
        "test_cases": result.get("test_cases"),
        **cost(result),
        **measures(result.get("metrics", {})),
    }


def cost(result: Mapping[str, Any]) -> Row:
    """Seconds of training alone, bytes of all sites in a round both ways, numbers in the generator; what is known."""
    flat: Row = {}
    if stages := result.get("stage_seconds"):
        flat["training_seconds"] = sum(stages.get(name, 0.0) for name in TRAINING)
    if rounds := result.get("rounds"):
        flat["bytes_per_round"] = round((result.get("bytes_up", 0) + result.get("bytes_down", 0)) / rounds)
    if result.get("parameters"):
        flat["parameters"] = result["parameters"]
    return flat


def failed_row(error: Exception, seconds: float) -> Row:
    reason = plain_words(str(error) or "no reason given")
    return {
        "status": FAILED,
        "reason": f"{type(error).__name__}: {reason}",
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "seconds": round(seconds, 1),
    }


def measures(metrics: Mapping[str, Any]) -> Row:
    """ROW_MEASURE of each row of each task, as tstr_auc or prior_recall_normal; fidelity of the synthetic set."""
    flat: Row = {}
    for task, names in (("classification", {"auc": "auc", "accuracy": "accuracy"}),
                        ("segmentation", {"dice_mean": "dice"})):  # fmt: skip
        for row, found in metrics.get(task, {}).items():
            if row == "per_site" or not isinstance(found, Mapping) or "skipped" in found:
                continue
            flat |= {f"{row}_{short}": _mean(found[name]) for name, short in names.items() if found.get(name)}
            flat |= {f"{row}_recall_{name}": _mean(value) for name, value in found.get("recall", {}).items()}
            if "n_train" in found:
                flat.setdefault(f"{row}_n", found["n_train"])
    segmenter = metrics.get("federated_segmenter", {})
    if segmenter.get("dice_mean") is not None:
        flat["federated_segmenter_dice"] = _mean(segmenter["dice_mean"])
    fidelity = metrics.get("fidelity", {})
    for prefix, found in (("", fidelity), ("prior_", fidelity.get("prior") or {}),
                          ("floor_", fidelity.get("floor") or {})):  # fmt: skip
        flat |= {f"{prefix}{name}": found[name] for name in ("fd", "kid", "coverage") if name in found}
    return flat


def _mean(value: Any) -> Any:
    return value.get("mean") if isinstance(value, Mapping) else value


def plain_words(text: str) -> str:
    """A reason in one line of ordinary length, without folders of this machine."""
    return re.sub(r"(?<![\w.])/(?:[^\s/:'\"]+/)+", "", " ".join(text.split()))[:LONGEST_REASON]


def machine() -> str:
    """Processor, cores, accelerator if there is one, and torch."""
    device = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{platform.machine()}, {os.cpu_count()} cores{device}, torch {torch.__version__}"


def code_commit() -> str:
    """The commit of the code, "-dirty" where it differs; results that are being written don't count."""
    if named := os.environ.get(COMMIT):
        return named
    short = _git("rev-parse", "--short", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ":/", f":(top,exclude){RESULTS}")
    return f"{short}-dirty" if short and changed else short or "unknown"


def _git(*words: str) -> str:
    try:
        done = subprocess.run(
            ["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
