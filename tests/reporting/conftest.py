"""A little run folder, as a finished study leaves it."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from fedmedgen.settings import Settings

CLASSES = ("normal", "opacity")
ROUND = {"status": "done", "reason": "", "patients_declared": 50, "bytes_up": 2e6, "bytes_down": 3e6, "seconds": 1.5}


def spread(mean: float) -> dict[str, float]:
    return {"mean": mean, "sd": 0.01}


def classified(auc: float) -> dict[str, Any]:
    recall = {"normal": spread(0.9), "opacity": spread(0.4)}
    return {"auc": spread(auc), "accuracy": spread(0.8), "recall": recall, "n_train": 40, "n_test": 20, "seeds": 2}


def segmented(dice: float) -> dict[str, Any]:
    return {"dice": {"lung": spread(dice)}, "dice_mean": spread(dice), "hd95": spread(2.5), "n_train": 40, "seeds": 2}


def metrics() -> dict[str, Any]:
    near = {"fd": 20.0, "kid": 0.1, "precision": 0.5, "recall": 0.4, "coverage": 0.3}
    return {
        "fidelity": near | {"n": 30, "floor": near | {"fd": 5.0}},
        "classification": {
            "trtr": classified(0.95),
            "tstr": classified(0.85),
            "prior": classified(0.7),
            "best_site": classified(0.9) | {"site": "site-1"},
            "per_site": {"site-1": classified(0.9)},
        },
        "segmentation": {
            "trtr": segmented(0.95),
            "tstr": segmented(0.9),
            "prior": {"skipped": "no prior for this study"},
            "best_site": {"skipped": "there is one site only"},
        },
    }


def result(private: bool) -> dict[str, Any]:
    spent = 4.5 if private else None
    site = {"patients_declared": 50, "epsilon_run": spent, "epsilon": spent, "unit": "patient", "rounds": 2}
    privacy: dict[str, Any] = {"mode": "none", "epsilon": None}
    if private:
        numbers = {
            "epsilon": 5.0,
            "epsilon_target": 5.0,
            "delta": 1e-5,
            "noise_multiplier": 1.25,
            "sample_rate": 0.1,
            "clip_norm": 1.0,
        }
        privacy = {"mode": "patient", "unit": "patient", "accountant": "PLD", **numbers}
    return {
        "status": "completed",
        "reason": "",
        "backend": "in-process",
        "rounds": 2,
        "seconds": 12.5,
        "stage_seconds": {"generator": 10.0, "evaluation": 2.5},
        "peak_rss_mb": 900,
        "bytes_up": 8_000_000,
        "bytes_down": 12_000_000,
        "simulation": True,
        "public_data": True,
        "privacy": privacy,
        "sites": {"site-1": {**site, "delta": 1e-5}, "site-2": {**site, "delta": 1e-5}},
        "lost_sites": {},
        "data": [
            {"site": name, "patients": 50, "images": 60, "classes": {"normal": 40, "opacity": 20}, "masks": 60}
            for name in ("site-1", "site-2")
        ],
        "rejected": [{"file": "site-1/<script>.png", "kind": "unreadable", "reason": "the file is cut short"}],
        "metrics": metrics(),
        "machine": "x86_64",
        "commit": "abc1234",
    }


def rounds(private: bool) -> list[dict[str, Any]]:
    rows = [
        {**ROUND, "stage": "generator", "round": number, "site": site, "epsilon": 2.0 * number if private else ""}
        for number in (1, 2)
        for site in ("site-1", "site-2")
    ]
    losses = [0.9, 0.8, 0.5, ""]
    rows = [{**row, "loss": loss} for row, loss in zip(rows, losses, strict=True)]
    rows[3] |= {"status": "rejected", "reason": "weights hold values that are not finite"}
    return rows


def write_synthetic(folder: Path) -> None:
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    mask = np.zeros((16, 16), np.uint8)
    mask[4:12, 4:8] = 255
    with (folder / "labels.csv").open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["filename", "label", "label_name", "split"])
        for number in range(6):
            Image.fromarray(np.roll(mask // 2, number, 1)).save(folder / "images" / f"{number}.png")
            Image.fromarray(np.roll(mask, number, 1)).save(folder / "masks" / f"{number}.png")
            table.writerow([f"{number}.png", number % 2, CLASSES[number % 2], "train"])


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Write a run folder; keywords replace entries of result.json."""

    def make(private: bool = True, **changes: Any) -> Path:
        run = tmp_path / "run"
        write_synthetic(run / "synthetic")
        settings = Settings.from_mapping(
            {
                "study": "small & <tidy>",
                "data": {
                    "root": "/home/someone/lungs",
                    "classes": list(CLASSES),
                    "mask_classes": ["background", "lung"],
                    "size": [16, 16],
                },
                "privacy": {"mode": "patient" if private else "none"},
            }
        )
        (run / "settings.yaml").write_text(yaml.safe_dump(settings.to_mapping()))
        (run / "result.json").write_text(json.dumps(result(private) | changes))
        rows = rounds(private)
        with (run / "rounds.csv").open("w", newline="") as stream:
            table = csv.DictWriter(stream, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
        return run

    return make
