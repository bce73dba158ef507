"""The command `fedmedgen segment`."""

import csv
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor

from fedmedgen.audit.identity import folder_hash
from fedmedgen.cli import main as program
from fedmedgen.data.pixels import mask_values
from fedmedgen.emission import mask_folder
from fedmedgen.models import saving
from fedmedgen.models.denoiser import build_denoiser
from fedmedgen.models.segmenter import Segmenter, from_denoiser
from fedmedgen.settings import DataSettings, GeneratorSettings, RuntimeSettings, Settings

TINY = GeneratorSettings(unshuffle=1, channels=(8, 16), attention=(False, False), norm_groups=4)
MASKS = ("background", "bone", "metal")


class Bright(Segmenter):
    """Marks what is brighter than the middle grey as bone, and what is nearly white as metal."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(images), images, 5 * (images - 0.75)], dim=1)


def tiny() -> Segmenter:
    denoiser = build_denoiser(TINY, num_classes=2, num_masks=2, size=(16, 16), seed=0)
    return from_denoiser(denoiser, len(MASKS), 0.1, 0).name_classes(MASKS)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    saving.save_segmenter(tiny(), folder / "segmenter", card={"epsilon": 8.0})
    settings = Settings(generator=TINY, data=DataSettings(size=(16, 16), fit="pad"))
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings.to_mapping()))
    return folder


@pytest.fixture
def by_brightness(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tiny()
    monkeypatch.setattr(saving, "load_segmenter", lambda _: Bright(whole.unet, whole.config))


def picture(size: tuple[int, int] = (32, 16), deep: bool = False) -> np.ndarray:
    """Black, with a bone of grey 200 in the rows 8 to 15 and metal in the last eight rows, over the whole width."""
    pixels = np.zeros(size, np.uint8)
    pixels[8:16], pixels[-8:] = 200, 255
    return pixels.astype(np.uint16) * 100 if deep else pixels


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def save_dicom(path: Path, pixels: np.ndarray, photometric: str = "MONOCHROME2") -> None:
    file = pydicom.Dataset()
    file.file_meta = pydicom.dataset.FileMetaDataset()
    file.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    file.SOPClassUID = pydicom.uid.DigitalXRayImageStorageForPresentation
    file.SOPInstanceUID, file.StudyInstanceUID, file.SeriesInstanceUID = (pydicom.uid.generate_uid() for _ in "123")
    file.PatientID, file.PatientName, file.Modality = "P-7", "Doe^Jane", "DX"
    bits = 8 * pixels.itemsize
    shown = pixels if photometric == "MONOCHROME2" else pixels.max() - pixels
    file.set_pixel_data(shown, photometric, bits, generate_instance_uid=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    file.save_as(path, enforce_file_format=True)


def call(run_folder: Path, images: Path, out: Path, *words: str) -> int:
    return program.main(["segment", str(run_folder), str(images), "--out", str(out), *words])


def rows(out: Path) -> dict[str, dict[str, Any]]:
    with (out / "segments.csv").open(newline="") as file:
        return {row["file"]: row for row in csv.DictReader(file)}


def values(path: Path) -> np.ndarray:
    return mask_values(np.asarray(Image.open(path)), len(MASKS))


def test_masks_overlays_and_a_table_are_written_at_each_images_own_size(
    run_folder: Path, by_brightness: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    save(images / "tall.png", picture((64, 32)))
    save(images / "ward" / "tall.png", picture((32, 16)))
    save(images / "ward" / "wide.png", picture((32, 64)))
    save_dicom(images / "deep.dcm", picture((32, 32), deep=True))
    save_dicom(images / "negative.dcm", picture((32, 32), deep=True), "MONOCHROME1")
    assert call(run_folder, images, out, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"count": 5, "rejected": [], "out": str(out)}
    for name, size in {"tall": (64, 32), "ward/tall": (32, 16), "ward/wide": (32, 64), "deep": (32, 32)}.items():
        mask = values(out / "masks" / f"{name}.png")
        assert mask.shape == size
        assert (mask[10:14] == 1).all(), name  # the network's own pixels are up to four rows high
        assert not mask[:6].any(), name
        assert (mask[-4:] == 2).all(), name
        with Image.open(out / "overlays" / f"{name}.png") as drawn:
            assert (drawn.mode, drawn.size) == ("RGB", size[::-1])
    np.testing.assert_array_equal(values(out / "masks" / "deep.png"), values(out / "masks" / "negative.png"))
    assert set(rows(out)) == {"tall.png", "ward/tall.png", "ward/wide.png", "deep.dcm", "negative.dcm"}
    mask, row = values(out / "masks" / "tall.png"), rows(out)["tall.png"]
    assert list(row) == [
        "file",
        "mask",
        "bone_share",
        "bone_components",
        "metal_share",
        "metal_components",
        "segmenter",
    ]
    assert float(row["bone_share"]) == pytest.approx((mask == 1).mean(), abs=1e-6)
    assert (row["mask"], row["metal_components"]) == ("tall.png", "1")


def test_a_saved_segmenter_marks_one_file(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "a.png", picture((40, 24)))
    assert call(run_folder, tmp_path / "a.png", tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert said == f"{tmp_path / 'out'}: masks of 1 radiographs; in overlays: bone cyan, metal orange\n"
    assert values(tmp_path / "out" / "masks" / "a.png").shape == (40, 24)


def test_a_squashed_run_squashes(run_folder: Path, by_brightness: None, tmp_path: Path) -> None:
    settings = Settings(generator=TINY, data=DataSettings(size=(16, 16), fit="squash"))
    squashed = tmp_path / "run"
    (squashed / "segmenter").mkdir(parents=True)
    (squashed / "settings.yaml").write_text(yaml.safe_dump(settings.to_mapping()))
    save(tmp_path / "a.png", picture((32, 128)))  # padded, its 32 rows would be 4 of the network's
    for name, folder in {"pad": run_folder, "squash": squashed}.items():
        assert call(folder, tmp_path / "a.png", tmp_path / name) == 0
    fine = values(tmp_path / "squash" / "masks" / "a.png")
    assert (fine[8:16] == 1).all()
    assert not fine[:8].any()
    assert not fine[16:24].any()
    assert (values(tmp_path / "pad" / "masks" / "a.png") != fine).any()


def test_a_bad_file_is_set_aside_and_said_and_the_others_go_on(
    run_folder: Path, by_brightness: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    save(images / "good.png", picture())
    (images / "bad.png").write_text("no picture")
    (images / "broken.dcm").write_bytes(b"\0" * 500)
    assert call(run_folder, images, out, "--json") == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert found["count"] == 1
    assert {bad["file"]: bad["kind"] for bad in found["rejected"]} == {
        "bad.png": "not-a-picture",
        "broken.dcm": "dicom-unreadable",
    }
    assert "set aside bad.png: not a picture" in said.err
    assert [path.name for path in (out / "masks").iterdir()] == ["good.png"]
    assert set(rows(out)) == {"good.png"}


def test_where_nothing_can_be_read_nothing_is_written_and_the_status_is_1(
    run_folder: Path, by_brightness: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.png").write_text("no picture")
    assert call(run_folder, tmp_path / "bad.png", tmp_path / "out") == 1
    said = capsys.readouterr()
    assert "set aside bad.png" in said.err
    assert "no usable radiograph among 1" in said.err
    assert said.out == ""
    assert not (tmp_path / "out").exists()


def test_two_images_of_one_stem_get_masks_of_their_own(run_folder: Path, by_brightness: None, tmp_path: Path) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    save(images / "a.png", picture((32, 16)))
    save_dicom(images / "a.dcm", picture((64, 64)))
    assert call(run_folder, images, out) == 0
    table = rows(out)
    assert values(out / "masks" / table["a.png"]["mask"]).shape == (32, 16)
    assert values(out / "masks" / table["a.dcm"]["mask"]).shape == (64, 64)


def test_a_folder_in_use_is_left_alone(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "images" / "a.png", picture())
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    assert call(run_folder, tmp_path / "images", out) == 1
    assert "must name a new or empty folder" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["mine.txt"]


def test_what_a_kill_leaves_is_gone_on_with(
    run_folder: Path, by_brightness: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, out, whole = tmp_path / "images", tmp_path / "images" / "out", tmp_path / "whole"
    for name in ("a.png", "b.png", "c.png"):
        save(images / name, picture())
    assert call(run_folder, images, whole) == 0
    plain = mask_folder.overlay

    def third(grey: np.ndarray, mask: np.ndarray) -> np.ndarray:
        if len(list((out / "overlays").glob("*"))) == 2:
            raise KeyboardInterrupt
        return plain(grey, mask)

    monkeypatch.setattr(mask_folder, "overlay", third)
    assert call(run_folder, images, out) == 130
    monkeypatch.setattr(mask_folder, "overlay", plain)
    assert set(rows(out)) == {"a.png", "b.png"}
    assert set(mask_folder.radiographs(images)) == {"a.png", "b.png", "c.png"}  # though its masks lie below
    assert call(run_folder, images, out) == 1  # a folder in use, unless asked for
    text = (out / "segments.csv").read_text()
    (out / "segments.csv").write_text(text + "c.png,c.p")  # cut short
    (out / "overlays" / "a.png").unlink()
    written = (out / "masks" / "b.png").stat().st_mtime_ns
    assert call(run_folder, images, out, "--resume") == 0
    assert rows(out) == rows(whole)
    assert (out / "masks" / "b.png").stat().st_mtime_ns == written
    assert {path.name for path in (out / "overlays").iterdir()} == {"a.png", "b.png", "c.png"}


def test_a_first_row_cut_short_is_dropped_and_rows_of_images_that_are_gone_stay(
    run_folder: Path, by_brightness: None, tmp_path: Path
) -> None:
    for name in ("a.png", "b.png"):
        save(tmp_path / "images" / name, picture())
    out = tmp_path / "out"
    assert call(run_folder, tmp_path / "images", out) == 0
    whole, table = rows(out), out / "segments.csv"
    header = table.read_text().partition("\n")[0]
    table.write_text(f"{header}\na.png,a.p")
    assert call(run_folder, tmp_path / "images", out, "--resume") == 0
    assert rows(out) == whole
    (tmp_path / "images" / "a.png").unlink()
    assert call(run_folder, tmp_path / "images", out, "--resume") == 0
    assert rows(out) == whole


def test_masks_of_another_segmenter_are_not_gone_on_with(
    run_folder: Path, by_brightness: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "images" / "a.png", picture())
    assert call(run_folder, tmp_path / "images", tmp_path / "out") == 0
    table = tmp_path / "out" / "segments.csv"
    table.write_text(table.read_text().replace(folder_hash(run_folder / "segmenter"), "0123456789abcdef"))
    before = table.read_text()
    assert call(run_folder, tmp_path / "images", tmp_path / "out", "--resume") == 1
    assert "holds masks by segmenter 0123456789ab" in capsys.readouterr().err
    assert table.read_text() == before


def test_a_run_without_a_segmenter_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    run.mkdir()
    save(tmp_path / "a.png", picture())
    assert call(run, tmp_path / "a.png", tmp_path / "out") == 1
    assert "no settings.yaml in" in capsys.readouterr().err
    (run / "settings.yaml").write_text(yaml.safe_dump(Settings().to_mapping()))
    assert call(run, tmp_path / "a.png", tmp_path / "out") == 1
    said = capsys.readouterr().err
    for words in ("expected a run with segmenter/", f"{run} has none", "name a run that trained one"):
        assert words in said


def test_a_name_that_is_no_text_loses_no_row_of_the_table(
    run_folder: Path, by_brightness: None, tmp_path: Path
) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    for name in ("a.png", os.fsdecode(b"caf\xe9.png")):
        save(images / name, picture())
    assert call(run_folder, images, out) == 0
    assert {path.name for path in (out / "masks").iterdir()} == {path.name for path in images.iterdir()}
    table = rows(out)
    assert set(table) == {"a.png", "caf\\udce9.png"}
    assert table["caf\\udce9.png"]["mask"] == "caf\\udce9.png"


def test_a_run_made_on_a_gpu_marks_without_one(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    save(tmp_path / "a.png", picture())
    run = copied(run_folder, tmp_path, RuntimeSettings(device="cuda"))
    assert call(run, tmp_path / "a.png", tmp_path / "out") == 0
    assert "no GPU" in caplog.text


def test_a_place_that_can_not_be_written_to_is_named(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "a.png", picture())
    assert call(run_folder, tmp_path / "a.png", tmp_path / "a.png" / "out") == 1
    assert f"{tmp_path / 'a.png'} is no folder: name another" in capsys.readouterr().err
    monkeypatch.setattr(os, "access", lambda *_: False)  # as a folder of another user
    assert call(run_folder, tmp_path / "a.png", tmp_path / "out") == 1
    assert f"{tmp_path} may not be written to" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["settings.yaml", "segmenter/model_index.json"])
def test_a_run_whose_files_are_spoiled_is_refused_in_words(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    save(tmp_path / "a.png", picture())
    run = copied(run_folder, tmp_path, RuntimeSettings())
    (run / place).write_bytes(b"\xff\xfe\x00 no text")
    assert call(run, tmp_path / "a.png", tmp_path / "out") == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert Path(place).parts[0].removesuffix(".yaml") in said


def copied(run_folder: Path, place: Path, runtime: RuntimeSettings) -> Path:
    """The run with another runtime."""
    run = Path(shutil.copytree(run_folder, place / "run"))
    settings = Settings(generator=TINY, data=DataSettings(size=(16, 16), fit="pad"), runtime=runtime)
    (run / "settings.yaml").write_text(yaml.safe_dump(settings.to_mapping()))
    return run


def test_dicom_masks_refer_to_their_sources_and_hold_the_same_pixels(
    run_folder: Path, by_brightness: None, tmp_path: Path
) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    save_dicom(images / "ward" / "x.dcm", picture((64, 32), deep=True))
    before = (images / "ward" / "x.dcm").read_bytes()
    assert call(run_folder, images, out, "--format", "dicom") == 0
    assert (images / "ward" / "x.dcm").read_bytes() == before
    patient = pydicom.dcmread(images / "ward" / "x.dcm")
    file = pydicom.dcmread(out / "segmentations" / "ward" / "x.dcm")
    assert (file.PatientID, file.StudyInstanceUID) == ("P-7", patient.StudyInstanceUID)
    (series,) = file.ReferencedSeriesSequence
    assert series.ReferencedInstanceSequence[0].ReferencedSOPInstanceUID == patient.SOPInstanceUID
    assert file.DeviceSerialNumber == folder_hash(run_folder / "segmenter")
    mask = values(out / "masks" / "ward" / "x.png")
    np.testing.assert_array_equal(file.pixel_array, np.stack([mask == 1, mask == 2]))


def test_a_seg_of_a_png_is_refused_before_anything_is_written(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "images" / "a.png", picture())
    save_dicom(tmp_path / "images" / "b.dcm", picture())
    assert call(run_folder, tmp_path / "images", tmp_path / "out", "--format", "dicom") == 2
    said = capsys.readouterr().err
    assert "it needs DICOM images; got a.png: use --format png" in said
    assert not (tmp_path / "out").exists()


def test_the_help_says_whose_the_masks_are_and_what_they_are_not(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        program.main(["segment", "--help"])
    said = capsys.readouterr().out
    assert "nothing is sent anywhere" in said
    assert "Not a medical device" in said
    assert "fedmedgen segment runs/" in said.partition("example")[2]


@pytest.mark.real_data
def test_real_radiographs_get_masks_and_segs_of_their_own_size(
    real_data: Path, run_folder: Path, by_brightness: None, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert call(run_folder, real_data / "fixtures" / "dicom", out, "--format", "dicom") == 0
    for name in rows(out):
        source = pydicom.dcmread(real_data / "fixtures" / "dicom" / name, stop_before_pixels=True)
        file = pydicom.dcmread(out / "segmentations" / name)
        assert (file.Rows, file.Columns) == (source.Rows, source.Columns)
        assert (file.PatientID, str(file.PatientName)) == (source.PatientID, str(source.PatientName))
        assert values(out / "masks" / Path(name).with_suffix(".png")).shape == (source.Rows, source.Columns)
    assert len(rows(out)) == 3
