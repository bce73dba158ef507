"""Tensorboard events of a run, written from its rows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

SCALARS = ("loss", "epsilon", "update_norm", "bytes_up", "seconds")


def write_events(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    """One curve a stage, site and quantity, by round; a folder written before is replaced."""
    for old in folder.glob("events.*"):
        old.unlink()
    with SummaryWriter(str(folder)) as writer:
        for row in rows:
            for name in SCALARS:
                if row[name] != "":
                    writer.add_scalar(f"{row['stage']}/{name}/{row['site']}", float(row[name]), int(row["round"]))
