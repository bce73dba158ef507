"""`fedmedgen evaluate`, from folders on disk to one JSON object."""

import argparse
import csv
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from fedmedgen.cli import evaluate
from fedmedgen.data.cases import CaseSet
from fedmedgen.errors import DataError, RunError
from fedmedgen.models import basis as bases
from fedmedgen.models import moments
from fedmedgen.models.saving import save_generator
from fedmedgen.settings import Settings

Make = Callable[..., CaseSet]


def write(cases: CaseSet, folder: Path, split: Callable[[int], str]) -> Path:
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    with (folder / "labels.csv").open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["filename", "label", "label_name", "split"])
        for number, case in enumerate(cases):
            assert case.label is not None
            assert case.mask is not None
            pixels = np.clip((case.image[0] + 1) * 127.5, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "images" / case.name)
            Image.fromarray(case.mask * 255).save(folder / "masks" / case.name)
            table.writerow([case.name, case.label, cases.classes[case.label], split(number)])
    return folder


def ask(*words: str) -> int:
    parser = argparse.ArgumentParser()
    evaluate.add(parser.add_subparsers())
    arguments = parser.parse_args(["evaluate", *words])
    return int(arguments.run(arguments))


@pytest.fixture
def folders(discs: Make, tmp_path: Path) -> tuple[str, str]:
    made = write(discs(30), tmp_path / "set", lambda _: "train")
    real = tmp_path / "real"
    for site in ("a", "b"):
        write(discs(30, seed=ord(site)), real / site, lambda number: "test" if number < 10 else "train")
    return str(made), str(real)


def test_the_keys_that_scripts_rely_on_are_printed_and_written(
    folders: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, real = folders
    out = tmp_path / "metrics.json"
    words = ["--mask-classes", "background,disc", "--seeds", "1", "--out", str(out), "--json"]
    assert ask(made, "--real", real, "--task", "segmentation", *words) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads(out.read_text())
    assert set(found) == {"set", "fidelity", "segmentation", "mask_shapes"}
    assert set(found["segmentation"]["tstr"]["dice"]["disc"]) == {"mean", "sd"}
    assert found["segmentation"]["trtr"]["n_train"] == 40
    assert found["segmentation"]["trtr"]["n_test"] == 20
    assert "--run" in found["segmentation"]["prior"]["skipped"]


def test_with_a_run_the_prior_and_the_best_site_are_measured(
    folders: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Settings.from_mapping(
        {
            "data": {"size": [16, 16], "min_patients": 2, "classes": ["left", "right"]},
            "evaluation": {"seeds": 1, "classifier_steps": 5, "prior_labels": ["normal", "opacity"]},
        }
    )
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(settings.to_mapping()))
    made, real = folders
    assert ask(made, "--real", real, "--run", str(tmp_path), "--task", "classification", "--json") == 0
    found = json.loads(capsys.readouterr().out)["classification"]
    assert found["best_site"]["site"] in ("a", "b")
    assert set(found["prior"]["auc"]) == set(found["tstr"]["accuracy"]) == {"mean", "sd"}
    assert set(found["tstr"]["recall"]) == {"left", "right"}


def test_with_a_run_that_released_statistics_samples_of_them_are_a_row(
    folders: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Settings.from_mapping(
        {
            "data": {"size": [16, 16], "min_patients": 2, "classes": ["left", "right"]},
            "emission": {"count": 12},
            "evaluation": {"seeds": 1, "classifier_steps": 3, "rows": ["trtr", "cheap", "real_and_synthetic"]},
        }
    )
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(settings.to_mapping()))
    basis = bases.pca(0.1 * torch.randn(20, 1, 16, 16, generator=torch.Generator().manual_seed(0)), 3)
    law = SimpleNamespace(means=torch.zeros(2, 3), covariances=torch.eye(3).expand(2, 3, 3))
    cheap = moments.from_moments(
        basis, law, pool=moments.Pool(exposures=torch.tensor([[0.0, 1.0]])), classes=("left", "right"), mask_classes=()
    )
    save_generator(cheap, tmp_path / "cheap", card={})
    made, real = folders
    assert ask(made, "--real", real, "--run", str(tmp_path), "--task", "classification", "--json") == 0
    found = json.loads(capsys.readouterr().out)["classification"]
    assert set(found) == {"trtr", "cheap", "real_and_synthetic", "rare", "best_site", "per_site"}
    assert found["cheap"]["n_train"] == 12
    for measure in ("auc", "ece", "brier"):
        assert 0 <= found["cheap"][measure]["mean"] <= 1
    assert found["rare"]["count"] == 20


def test_what_is_printed_is_told_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        ask("--help")
    told = capsys.readouterr().out
    for word in ("density", "coverage", "real_and_synthetic", "ece", "brier", "rare", "hd95_missed", "cheap"):
        assert word in told


def test_real_cases_without_a_test_split_are_refused(folders: tuple[str, str]) -> None:
    made, _ = folders
    with pytest.raises(DataError, match="split 'test'"):
        ask(made, "--real", made)


def test_a_run_folder_without_settings_is_refused(folders: tuple[str, str], tmp_path: Path) -> None:
    made, real = folders
    with pytest.raises(RunError, match=r"settings\.yaml"):
        ask(made, "--real", real, "--run", str(tmp_path))
