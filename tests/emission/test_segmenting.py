"""Masks at a picture's own size, their measures, overlays, names, and the SEG that refers to a patient's file."""

import warnings
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
import torch
from diffusers import UNet2DModel
from highdicom._standard_utils import check_required_attributes, get_iod_module_map, get_sop_class_iod_map
from PIL import Image
from pydicom import config
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import (
    ExplicitVRLittleEndian,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    XRayAngiographicImageStorage,
    XRayRadiofluoroscopicImageStorage,
    generate_uid,
)
from torch import Tensor

from fedmedgen import __version__
from fedmedgen.data.pixels import mask_values, resize
from fedmedgen.data.rejection import Unusable
from fedmedgen.emission.mask_folder import Wanted, names_of, radiographs, write_masks
from fedmedgen.emission.overlay import COLOURS, colour_of, overlay
from fedmedgen.emission.patient_segmentation import patient_segmentation
from fedmedgen.emission.segmentation_object import codes_of
from fedmedgen.emission.segmenting import inside, mask_of, measures, unfitted
from fedmedgen.errors import DataError
from fedmedgen.models.segmenter import Segmenter, SegmenterConfig

FRAME = (16, 16)
MASKS = ("background", "lungs", "caries")
DIGITAL_X_RAY = "1.2.840.10008.5.1.4.1.1.1.1"


def bright(images: Tensor) -> Tensor:
    """A network that marks what is brighter than the middle grey."""
    return torch.cat([-images, images], dim=1)


def square(size: tuple[int, int], rows: slice, columns: slice) -> np.ndarray:
    grey = np.full(size, -1, np.float32)
    grey[rows, columns] = 1
    return grey


@pytest.mark.parametrize("fit", ["pad", "squash"])
@pytest.mark.parametrize("size", [(128, 64), (64, 128), (128, 128)])
def test_the_mask_lies_where_the_bright_square_lies_in_a_tall_a_wide_and_a_square_picture(
    size: tuple[int, int], fit: str
) -> None:
    grey = square(size, slice(16, 48), slice(24, 56))
    mask = mask_of(bright, grey, FRAME, fit)
    assert mask.shape == size
    rows, columns = np.nonzero(mask)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (16, 47, 24, 55)
    assert not mask[grey < 0].any()
    assert mask.sum() > 0.9 * 32 * 32  # a coarse frame rounds the corners off


@pytest.mark.parametrize("size", [(16, 8), (8, 16), (16, 16)])
def test_a_picture_that_was_only_padded_gets_its_mask_pixel_for_pixel(size: tuple[int, int]) -> None:
    grey = square(size, slice(2, 5), slice(3, 8))
    np.testing.assert_array_equal(mask_of(bright, grey, FRAME, "pad"), grey > 0)


@pytest.mark.parametrize("fit", ["pad", "squash"])
def test_the_network_sees_what_it_saw_in_training(fit: str) -> None:
    grey = np.random.default_rng(0).uniform(-1, 1, (37, 23)).astype(np.float32)
    seen: list[Tensor] = []

    def watch(images: Tensor) -> Tensor:
        seen.append(images)
        return bright(images)

    mask_of(watch, grey, FRAME, fit)
    np.testing.assert_array_equal(seen[0].numpy(), resize(grey, FRAME, fit)[None])


def test_what_lies_in_the_padding_never_reaches_the_mask() -> None:
    logits = torch.zeros(2, 16, 16)
    logits[0], logits[1, :, :4], logits[1, :, 12:] = 1, 9, 9  # a tall picture's padding is left and right
    assert not unfitted(logits, (64, 32), "pad").any()
    assert unfitted(logits, (64, 32), "squash").any()


@pytest.mark.parametrize("size", [(2000, 1999), (31, 500), (9, 8), (16, 16), (333, 17)])
@pytest.mark.parametrize("fit", ["pad", "squash"])
def test_a_picture_fills_the_part_of_the_frame_that_the_fit_gave_it(size: tuple[int, int], fit: str) -> None:
    rows, columns = inside(FRAME, size, fit)
    filled = resize(np.zeros(size, np.float32), FRAME, fit)[0] > -0.5
    expected = np.zeros(FRAME, bool)
    expected[rows, columns] = True
    np.testing.assert_array_equal(filled, expected)


def test_classes_are_chosen_after_the_logits_are_spread_as_a_slow_reference_does() -> None:
    logits = torch.randn(5, 16, 16, generator=torch.Generator().manual_seed(0))
    slow = torch.nn.functional.interpolate(logits[None], (61, 75), mode="bilinear")[0].argmax(0)
    np.testing.assert_array_equal(unfitted(logits, (61, 75), "squash"), slow.numpy())


def test_measures_are_shares_of_the_area_and_counts_of_pieces() -> None:
    mask = np.zeros((10, 10), np.uint8)
    mask[:2, :5] = mask[5:7, :5] = 1
    mask[8, 8] = mask[9, 9] = 2  # pixels that meet at a corner are one piece
    assert measures(mask, (*MASKS, "rib")) == {
        **{"lungs_share": 0.2, "lungs_components": 2},
        **{"caries_share": 0.02, "caries_components": 1},
        **{"rib_share": 0.0, "rib_components": 0},
    }


def test_an_overlay_draws_each_class_in_its_colour_and_leaves_the_rest_grey() -> None:
    picture = np.linspace(-1, 1, 40 * 40, dtype=np.float32).reshape(40, 40)
    mask = np.zeros((40, 40), np.uint8)
    mask[5:15, 5:15], mask[20:35, 20:35] = 1, 2
    drawn = overlay(picture, mask)
    assert drawn.shape == (40, 40, 3)
    assert tuple(drawn[5, 10]) == COLOURS[colour_of(1)]
    assert tuple(drawn[20, 25]) == COLOURS[colour_of(2)]
    assert np.ptp(drawn[mask == 0].astype(int), axis=1).max() == 0
    veiled = drawn[10, 10].astype(int)
    assert veiled.max() - veiled.min() > 10
    assert np.abs(veiled - 255 * (picture[10, 10] + 1) / 2).max() < 40  # what lies below stays readable


def test_a_mask_that_leaves_the_picture_has_no_line_at_its_border() -> None:
    mask = np.zeros((40, 40), np.uint8)
    mask[:, :20] = 1
    drawn = overlay(np.zeros((40, 40), np.float32), mask)
    line = (drawn == COLOURS[colour_of(1)]).all(axis=2)
    assert np.flatnonzero(line.any(axis=0)).tolist() == [19]


def test_more_classes_than_colours_begin_again_with_the_first() -> None:
    assert colour_of(len(COLOURS) + 1) == colour_of(1)


def test_names_lose_their_suffix_keep_their_folder_and_never_collide() -> None:
    files = ["a.png", "a.dcm", "A.dcm.png", "b/a.png", "b/1.2.840.7", "b/1.2.840.8", "c.PNG"]
    names = names_of(files)
    assert names["b/a.png"] == "b/a"
    assert (names["b/1.2.840.7"], names["c.PNG"]) == ("b/1.2.840.7", "c")
    assert (names["a.png"], names["a.dcm"]) == ("a.png", "a.dcm")
    assert len({name.casefold() for name in names.values()}) == len(files)


def test_pictures_are_found_at_any_depth_and_other_files_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "deep" / ".hidden").mkdir(parents=True)
    for name in ("a.png", "deep/b.PNG", "notes.txt", "deep/.hidden/c.png", ".d.png", "deep/e.dcm"):
        (tmp_path / name).write_bytes(b"x")
    for name in ("deep/IM0001", "deep/1.2.840.7", "DICOMDIR"):
        (tmp_path / name).write_bytes(b"\0" * 128 + b"DICM")
    assert list(radiographs(tmp_path)) == ["a.png", "deep/1.2.840.7", "deep/IM0001", "deep/b.PNG", "deep/e.dcm"]
    assert list(radiographs(tmp_path / "a.png")) == ["a.png"]


def test_pictures_behind_links_are_found_once(tmp_path: Path) -> None:
    for name in ("elsewhere/b.png", "given/a.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "given" / "day1").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "given" / "day2").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "given" / "again").symlink_to(tmp_path / "given")
    found = radiographs(tmp_path / "given")
    assert sorted(path.name for path in found.values()) == ["a.png", "b.png"]


def test_masks_beside_their_images_are_no_radiographs(tmp_path: Path) -> None:
    for name in ("north/images/a.png", "north/masks/a.png", "south/images/ward/b.png", "south/masks/ward/b.png",
                 "lone/masks/c.png"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"x")
    assert list(radiographs(tmp_path)) == ["lone/masks/c.png", "north/images/a.png", "south/images/ward/b.png"]
    assert list(radiographs(tmp_path / "north" / "masks")) == ["a.png"]  # whoever names it means it


def test_what_was_made_of_radiographs_before_is_not_taken_for_more_of_them(tmp_path: Path) -> None:
    for name in ("a.png", "deep/b.png", "out/masks/a.png", "out/overlays/a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (16, 16)).save(tmp_path / name)
    (tmp_path / "out" / "segments.csv").write_text("file\n")
    assert set(radiographs(tmp_path)) == {"a.png", "deep/b.png"}
    assert set(radiographs(tmp_path / "deep")) == {"b.png"}
    (tmp_path / "deep" / "segments.csv").write_text("file\n")  # a table beside radiographs makes them nobody's masks
    assert set(radiographs(tmp_path)) == {"a.png", "deep/b.png"}


def test_a_name_that_no_mask_can_have_costs_that_picture_alone(
    tmp_path: Path,
) -> None:
    unet = UNet2DModel(FRAME, 1, 2, block_out_channels=(8,), norm_num_groups=4, layers_per_block=1, num_class_embeds=2,
                       down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",))  # fmt: skip
    config = SegmenterConfig(mask_classes=("background", "lung"), size=FRAME, fit="pad", unshuffle=1, sigma_data=0.5,
                             preconditioning="edm", noise_level=0.1)  # fmt: skip
    files = {}
    for name in ("a.jpg", "a.png/b.png", f"{'x' * 253}", "z.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(0).integers(0, 255, (16, 16), np.uint8)
        Image.fromarray(noise).save(tmp_path / "in" / name, format="PNG")
        files[name] = tmp_path / "in" / name
    outcome = write_masks(Segmenter(unet, config), files, tmp_path / "out", Wanted(fit="pad"))
    assert [row["file"] for row in outcome.rows] == ["a.jpg", "a.png/b.png", "z.png"]
    (bad,) = outcome.rejected
    table = (Path(__file__).parents[2] / "docs" / "bad-input.md").read_text()
    given = "for `segment`, a name of 253 letters, which is too long for the mask's"
    assert f"| `{bad.kind}` | {given} | {bad.reason} |" in table


def test_nothing_to_mark_is_an_error_that_names_the_place(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("none")
    with pytest.raises(DataError, match="found none among 1 files"):
        radiographs(tmp_path)
    with pytest.raises(DataError, match="found nothing: correct the path"):
        radiographs(tmp_path / "absent")


def source(path: Path, *, without: tuple[str, ...] = (), **changes: Any) -> Dataset:
    """A patient's radiograph of 16x20 pixels as a DICOM file."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, DIGITAL_X_RAY
    meta.MediaStorageSOPInstanceUID = generate_uid()
    attributes = {
        **{"SpecificCharacterSet": "ISO_IR 100", "PatientID": "P-7", "PatientName": "Müller^Jörg"},
        **{"PatientBirthDate": "19400305", "PatientSex": "M", "PatientAge": "064Y", "AccessionNumber": "A1"},
        **{"StudyInstanceUID": generate_uid(), "SeriesInstanceUID": generate_uid(), "StudyID": "9"},
        **{"SOPClassUID": DIGITAL_X_RAY, "SOPInstanceUID": meta.MediaStorageSOPInstanceUID, "Modality": "DX"},
        **{"StudyDate": "20040826", "StudyTime": "185059", "ReferringPhysicianName": "Ärztin^", "Rows": 16},
        **{"Columns": 20, "BodyPartExamined": "CHEST", "SamplesPerPixel": 1, "BitsAllocated": 8, "BitsStored": 8},
        **{"HighBit": 7, "PixelRepresentation": 0, "PhotometricInterpretation": "MONOCHROME2"},
        **{"PixelData": bytes(range(160)) * 2},
        **changes,
    }
    file = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, value in attributes.items():
            if name not in without:
                setattr(file, name, value)
        file["PixelData"].VR = "OB"
        file.save_as(path, enforce_file_format=True)
        return pydicom.dcmread(path)


def regions() -> np.ndarray:
    mask = np.zeros((16, 20), np.uint8)
    mask[2:6, 3:9], mask[10:14, 12:19] = 1, 2
    return mask


def made(mask: np.ndarray, path: Path) -> Dataset:
    file = patient_segmentation(mask, path, MASKS, "0f" * 32)
    file.save_as(path.with_suffix(".seg"), enforce_file_format=True)
    return pydicom.dcmread(path.with_suffix(".seg"))


def test_a_seg_is_of_its_sources_patient_and_study_and_refers_to_it(tmp_path: Path) -> None:
    patient = source(tmp_path / "x.dcm")
    file = made(regions(), tmp_path / "x.dcm")
    for name in ("PatientID", "PatientBirthDate", "PatientSex", "PatientAge", "AccessionNumber"):
        assert file[name].value == patient[name].value, name
    for name in ("StudyInstanceUID", "StudyID", "StudyDate", "StudyTime", "BodyPartExamined"):
        assert file[name].value == patient[name].value, name
    assert (str(file.PatientName), str(file.ReferringPhysicianName)) == ("Müller^Jörg", "Ärztin^")
    (series,) = file.ReferencedSeriesSequence
    (instance,) = series.ReferencedInstanceSequence
    assert series.SeriesInstanceUID == patient.SeriesInstanceUID != file.SeriesInstanceUID
    assert instance.ReferencedSOPInstanceUID == patient.SOPInstanceUID != file.SOPInstanceUID
    assert "SyntheticData" not in file


def test_a_seg_of_a_synthetic_picture_says_that_it_is_synthetic(tmp_path: Path) -> None:
    source(tmp_path / "x.dcm", SyntheticData="YES")
    assert made(regions(), tmp_path / "x.dcm").SyntheticData == "YES"


def test_two_long_names_of_one_beginning_have_codes_of_their_own() -> None:
    left, right = (codes_of(f"pleural effusion {side}")[1] for side in ("left", "right"))
    assert left.value != right.value
    assert max(len(left.value), len(right.value)) <= 16
    assert (left.meaning, right.meaning) == ("pleural effusion left", "pleural effusion right")


@pytest.mark.parametrize("kind", [XRayAngiographicImageStorage, XRayRadiofluoroscopicImageStorage,
                                  MultiFrameGrayscaleWordSecondaryCaptureImageStorage])  # fmt: skip
@pytest.mark.parametrize("frames", [{}, {"NumberOfFrames": 1}], ids=["", "one frame"])
def test_a_class_that_may_have_several_frames_gets_a_seg_too(kind: str, frames: dict[str, int], tmp_path: Path) -> None:
    patient = source(tmp_path / "x.dcm", SOPClassUID=kind, Modality="XA", **frames)
    file = made(regions(), tmp_path / "x.dcm")
    (instance,) = file.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    assert (instance.ReferencedSOPClassUID, instance.ReferencedSOPInstanceUID) == (kind, patient.SOPInstanceUID)
    named = [element.value for element in file.iterall() if element.keyword == "ReferencedSOPClassUID"]
    assert set(named) == {kind}


def test_its_segments_are_automatic_by_this_program_and_its_version(tmp_path: Path) -> None:
    source(tmp_path / "x.dcm")
    file = made(regions(), tmp_path / "x.dcm")
    assert [segment.SegmentLabel for segment in file.SegmentSequence] == ["lungs", "caries"]
    for segment in file.SegmentSequence:
        assert (segment.SegmentAlgorithmType, segment.SegmentAlgorithmName) == ("AUTOMATIC", "fedmedgen")
        (algorithm,) = segment.SegmentationAlgorithmIdentificationSequence
        assert algorithm.AlgorithmVersion == __version__
        assert "0f" * 32 in algorithm.AlgorithmParameters
    assert "not for diagnosis" in file.SeriesDescription


def test_highdicom_reads_the_mask_back_and_the_standards_required_attributes_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient = source(tmp_path / "x.dcm")
    monkeypatch.setattr(config.settings, "reading_validation_mode", config.RAISE)
    file = made(regions(), tmp_path / "x.dcm")
    assert all(element.value is not element for element in file.iterall())  # each is validated when it is asked for
    for module in get_iod_module_map()[get_sop_class_iod_map()[file.SOPClassUID]]:
        if module["usage"] == "M" and not module["key"].endswith("functional-groups"):
            check_required_attributes(file, module["key"])
    found = highdicom.seg.segread(tmp_path / "x.seg")
    pixels = found.get_pixels_by_source_instance([patient.SOPInstanceUID], combine_segments=True)
    np.testing.assert_array_equal(pixels[0], regions())


def test_a_mask_of_background_alone_is_written_too(tmp_path: Path) -> None:
    source(tmp_path / "x.dcm")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        file = made(np.zeros((16, 20), np.uint8), tmp_path / "x.dcm")
    assert not file.pixel_array.any()


ODD = {
    "a sex that the standard doesn't know": {"PatientSex": "female"},
    "a date of the old kind": {"PatientBirthDate": "1940.03.05"},
    "a spacing of nothing": {"PixelSpacing": [0, 0]},
    "a place in space without a spacing": {"FrameOfReferenceUID": "1.2.3", "ImagePositionPatient": [0, 0, 0]},
    "one frame, counted": {"NumberOfFrames": 1},
    "no patient at all": {"without": ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyDate")},
    "no modality": {"Modality": ""},
}


@pytest.mark.parametrize("what", ODD)
def test_departures_from_the_standard_that_a_reader_forgives_do_not_stop_a_seg(what: str, tmp_path: Path) -> None:
    patient = source(tmp_path / "x.dcm", **ODD[what])
    file = made(regions(), tmp_path / "x.dcm")
    assert file.ReferencedSeriesSequence[0].SeriesInstanceUID == patient.SeriesInstanceUID
    for name in ("PatientID", "PatientSex", "PatientBirthDate"):
        assert (file[name].value or "") == str(patient.get(name, "")), name


@pytest.mark.parametrize("name", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"])
def test_a_source_that_nothing_can_refer_to_is_unusable(name: str, tmp_path: Path) -> None:
    source(tmp_path / "x.dcm", without=(name,))
    with pytest.raises(Unusable, match=name):
        patient_segmentation(regions(), tmp_path / "x.dcm", MASKS, "")


def test_mask_values_are_those_that_the_projects_reader_understands() -> None:
    levels = np.linspace(0, 255, len(MASKS)).round().astype(np.uint8)
    np.testing.assert_array_equal(mask_values(levels[regions()], len(MASKS)), regions())
