"""The command `fedmedgen emit`."""

import argparse
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
import yaml

from fedmedgen.audit.identity import folder_hash
from fedmedgen.cli import emit
from fedmedgen.errors import RunError, SettingsError
from fedmedgen.models.denoiser import build_denoiser
from fedmedgen.models.saving import load_generator, save_generator
from fedmedgen.settings import DataSettings, GeneratorSettings, RuntimeSettings, Settings
from fedmedgen.training.checkpoints import save_arrays

TINY = GeneratorSettings(unshuffle=1, channels=(8, 16), attention=(False, False), norm_groups=4, sampler_steps=2)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    model = build_denoiser(TINY, num_classes=3, num_masks=1, size=(12, 12), seed=0)
    model.name_classes(["normal", "opacity", "nodule"], ["background", "lung"])
    save_generator(model, folder / "generator", card={"epsilon": 8.0})
    (folder / "settings.yaml").write_text(yaml.safe_dump(Settings(generator=TINY).to_mapping()))
    (folder / "result.json").write_text(json.dumps({"privacy": {"epsilon": 8.0}}))
    return folder


def command(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    emit.add(parser.add_subparsers())
    return parser.parse_args(["emit", *words])


def call(*words: str) -> int:
    arguments = command(*words)
    return int(arguments.run(arguments))


def test_a_set_is_written_and_described_in_one_json_object(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "set"
    assert call(str(run_folder), "--count", "5", "--label", "nodule=3", "--out", str(out), "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["count"] == 5
    assert said["labels"] == {"nodule": 3, "normal": 1, "opacity": 1}
    assert len(list((out / "images").iterdir())) == len(list((out / "masks").iterdir())) == 5
    sheet = json.loads((out / "datasheet.json").read_text())
    assert (sheet["synthetic"], sheet["privacy"]) == (True, {"epsilon": 8.0})


def test_the_words_for_people_name_the_folder_and_the_counts(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "set"
    assert call(str(run_folder), "--label", "opacity=2", "--out", str(out), "--format", "npz") == 0
    assert capsys.readouterr().out == f"{out}: 2 synthetic cases (2 opacity)\n"
    assert (out / "set.npz").is_file()


def test_a_set_drawn_in_bf16_is_the_same_but_for_a_rounding(run_folder: Path, tmp_path: Path) -> None:
    for precision in ("fp32", "bf16"):
        words = ("--label", "opacity=2", "--format", "npz", "--precision", precision)
        assert call(str(run_folder), *words, "--out", str(tmp_path / precision)) == 0
    plain, coarse = (np.load(tmp_path / name / "set.npz")["train_images"].astype(float) for name in ("fp32", "bf16"))
    assert 0 < np.abs(plain - coarse).mean() < 2  # of 255, from a network that has learned nothing


def test_a_folder_in_use_is_left_alone(run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(RunError, match="must name a new or empty folder"):
        call(str(run_folder), "--count", "1", "--out", str(tmp_path))


def test_a_run_made_on_a_gpu_draws_without_one(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    other = tmp_path / "run"
    shutil.copytree(run_folder, other)
    made = Settings(generator=TINY, runtime=RuntimeSettings(device="cuda"))
    (other / "settings.yaml").write_text(yaml.safe_dump(made.to_mapping()))
    assert call(str(other), "--count", "3", "--out", str(tmp_path / "set")) == 0
    assert "no GPU" in caplog.text


def test_a_place_that_can_not_be_written_to_is_refused_before_anything_is_drawn(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("keep")
    monkeypatch.setattr(emit, "_emit", None)  # nothing is drawn
    with pytest.raises(RunError, match="file is no folder"):
        call(str(run_folder), "--count", "1", "--out", str(tmp_path / "file" / "set"))
    monkeypatch.setattr(os, "access", lambda *_: False)  # as a folder of another user
    with pytest.raises(RunError, match="may not be written to"):
        call(str(run_folder), "--count", "1", "--out", str(tmp_path / "new" / "set"))


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no settings\.yaml in"):
        call(str(tmp_path), "--count", "1", "--out", str(tmp_path / "set"))


def test_no_count_at_all_is_refused() -> None:
    with pytest.raises(SettingsError, match="give --count N, or --label NAME=COUNT"):
        emit.counts_of(["a", "b"], None, {})


@pytest.mark.parametrize(("count", "labels"), [(0, {}), (3, {"a": 4}), (5, {"a": 2, "b": 2})])
def test_a_count_that_does_not_fit_the_labels_is_refused(count: int, labels: dict[str, int]) -> None:
    with pytest.raises(SettingsError, match="must be at least 1 and fit the labels' sum"):
        emit.counts_of(["a", "b"], count, labels)


@pytest.mark.parametrize("word", ["nodule", "nodule=", "=3", "nodule=-1", "nodule=many"])
def test_a_label_that_is_not_name_and_count_is_wrong_usage(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command("run", "--out", "set", "--label", word)
    assert stopped.value.code == 2
    assert "expected NAME=COUNT" in capsys.readouterr().err


def test_a_dicom_set_names_the_generator_and_the_body_part_of_phantoms(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "set"
    words = ["--label", "nodule=1", "--seed", "5", "--format", "dicom", "--out", str(out)]
    assert call(str(run_folder), *words) == 0
    (picture,) = (pydicom.dcmread(path) for path in (out / "images").iterdir())
    assert (picture.BodyPartExamined, picture.SeriesDescription) == ("CHEST", "Synthetic: nodule")
    assert "seed 5" in picture.ImageComments
    assert folder_hash(run_folder / "generator") in picture.ImageComments
    (mask,) = (pydicom.dcmread(path) for path in (out / "segmentations").iterdir())
    assert mask.SegmentSequence[0].SegmentLabel == "lung"


@pytest.mark.parametrize(("family", "prior", "public"), [
    ("moments", {"nearest": True, "phantoms": 9}, True),
    ("moments", {"nearest": True, "phantoms": 0}, False),
    ("moments", {"nearest": False, "phantoms": 9}, False),
    ("unet", {"nearest": True, "phantoms": 9}, False),
])  # fmt: skip
def test_the_datasheet_says_whether_masks_are_those_of_public_images(
    run_folder: Path, family: str, prior: dict[str, int], public: bool
) -> None:
    share = {"share": 1.0 if family == "moments" else 0.5}
    asked = {"generator": {"family": family}, "segmenter": {"rounds": 0}, "statistics": share, "prior": prior}
    sheet = emit._datasheet(command(str(run_folder), "--out", "x"), Settings.from_mapping(asked))
    assert sheet["public_masks"] is public


def test_the_body_part_is_told_or_left_out_where_it_is_not_known(run_folder: Path) -> None:
    settings = Settings(data=DataSettings(root="somewhere"))
    assert emit._datasheet(command(str(run_folder), "--out", "x"), settings)["body_part"] == ""
    told = command(str(run_folder), "--out", "x", "--body-part", "HAND")
    assert emit._datasheet(told, settings)["body_part"] == "HAND"
    with pytest.raises(SystemExit):
        command(str(run_folder), "--out", "x", "--body-part", "chest, left")


@pytest.fixture
def kept(run_folder: Path, tmp_path: Path) -> Path:
    """What a site's folder holds of its own layers after two rounds: norms, far from those of the generator."""
    folder = tmp_path / "site" / "personal"
    norms = [name for name, _ in load_generator(run_folder / "generator").named_parameters() if "norm" in name]
    shapes = dict(load_generator(run_folder / "generator").named_parameters())
    for number, value in ((9, 1.5), (10, 3.0)):
        arrays = {name: torch.full_like(shapes[name].detach(), value) for name in norms}
        save_arrays(folder / "abc" / f"{number}.safetensors", arrays)
    return folder


def pictures(folder: Path) -> list[bytes]:
    return [file.read_bytes() for file in sorted((folder / "images").iterdir())]


def test_a_site_draws_with_the_layers_that_it_kept_after_its_last_round(
    run_folder: Path, kept: Path, tmp_path: Path
) -> None:
    def drawn(name: str, *words: str) -> list[bytes]:
        assert call(str(run_folder), "--count", "2", "--out", str(tmp_path / name), *words) == 0
        said = json.loads((tmp_path / name / "datasheet.json").read_text())["personal_layers"]
        assert said == bool(words)
        return pictures(tmp_path / name)

    globally, own = drawn("global"), drawn("own", "--personal", str(kept))
    assert globally != own
    assert drawn("named", "--personal", str(kept / "abc")) == own
    (kept / "abc" / "10.safetensors").unlink()
    assert drawn("before", "--personal", str(kept)) not in (globally, own)


def test_layers_that_are_not_there_not_of_one_run_or_not_of_this_generator_are_refused(
    run_folder: Path, kept: Path, tmp_path: Path
) -> None:
    def refused(folder: Path, why: str) -> None:
        with pytest.raises(RunError, match=why):
            call(str(run_folder), "--count", "1", "--out", str(tmp_path / "set"), "--personal", str(folder))
        assert not (tmp_path / "set").exists()

    refused(tmp_path, "expected personal layers")
    save_arrays(kept / "def" / "1.safetensors", {"unet.nothing": torch.zeros(2)})
    refused(kept, "several runs: name one of abc, def")
    refused(kept / "def", "no such parameter: unet.nothing")
    save_arrays(kept / "def" / "1.safetensors", {"unet.conv_in.bias": torch.zeros(2)})
    refused(kept / "def", "another shape")
