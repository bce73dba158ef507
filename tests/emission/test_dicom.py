"""DICOM sets: what the files say, that the standard's own rules hold, and that others' programs read them."""

import shutil
import subprocess
import warnings
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from highdicom._standard_utils import check_required_attributes, get_iod_module_map, get_sop_class_iod_map
from pydicom import Dataset, config
from pydicom.multival import MultiValue

from fedmedgen.data import sources
from fedmedgen.data.cases import Case, CaseSet
from fedmedgen.emission import write_set
from fedmedgen.emission.secondary_capture import PRIVATE_CREATOR, PRIVATE_GROUP, Origin, text
from fedmedgen.emission.writing import grey
from fedmedgen.settings import DataSettings

SIZE = (16, 20)
MASKS = ("background", "lungs", "caries")
SHEET = {"study": "demo", "seed": 7, "generator": "0f" * 32, "body_part": "CHEST"}


def drawn(mask_classes: tuple[str, ...] = MASKS) -> CaseSet:
    random = np.random.default_rng(0)
    ramp = np.linspace(-1, 1, SIZE[0] * SIZE[1]).reshape(1, *SIZE).astype(np.float32)
    cases = []
    for number in range(3):
        mask = random.integers(0, len(mask_classes), SIZE).astype(np.uint8) if mask_classes else None
        cases.append(Case(ramp, f"synthetic-{number:06d}.png", number % 2, mask, site="synthetic", split="train"))
    return CaseSet(tuple(cases), ("normal", "Pleuraerguß\\links"), mask_classes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("dicom")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_set(drawn(), root, format="dicom", datasheet=SHEET)
    return root


def files(folder: Path, kind: str) -> list[Dataset]:
    return [pydicom.dcmread(path) for path in sorted((folder / kind).iterdir())]


@pytest.mark.parametrize("kind", ["images", "segmentations"])
def test_every_object_says_that_it_is_synthetic_and_what_made_it(folder: Path, kind: str) -> None:
    for file in files(folder, kind):
        assert file.SyntheticData == "YES"
        (maker,) = file.ContributingEquipmentSequence
        assert maker.PurposeOfReferenceCodeSequence[0].CodeMeaning == "Synthesizing Equipment"
        assert maker.Manufacturer == file.Manufacturer == "fedmedgen"
        for word in ("study demo", "seed 7", "0f" * 32):
            assert word in maker.ContributionDescription
        assert file.BodyPartExamined == "CHEST"


def test_a_picture_tells_its_class_to_people_and_to_programs(folder: Path) -> None:
    _, sick, _ = files(folder, "images")
    assert (sick.Modality, sick.ConversionType) == ("OT", "SYN")
    assert "Class: Pleuraerguß/links." in sick.ImageComments
    assert sick.SeriesDescription == "Synthetic: Pleuraerguß/links"
    block = sick.private_block(PRIVATE_GROUP, PRIVATE_CREATOR)
    assert [block[place].value for place in (1, 2, 3, 4)] == ["Pleuraerguß/links", "1", "7", "0f" * 32]


@pytest.mark.parametrize("kind", ["images", "segmentations"])
def test_no_object_holds_a_patient_or_the_date_of_an_examination(folder: Path, kind: str) -> None:
    for number, file in enumerate(files(folder, kind)):
        assert file.PatientID == f"synthetic-{number:06d}"
        assert str(file.PatientName).rstrip("^") == "Synthetic"
        for name in ("PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "AccessionNumber", "StudyID"):
            assert not file[name].value, name
        assert "InstitutionName" not in file


@pytest.mark.parametrize("kind", ["images", "segmentations"])
def test_attributes_that_the_standard_requires_are_there_and_their_values_are_valid(
    folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config.settings, "reading_validation_mode", config.RAISE)
    for file in files(folder, kind):
        values = [element.value for element in file.iterall()]  # each is validated when it is asked for
        assert not any(isinstance(value, MultiValue) and not len(value) for value in values)
        for module in get_iod_module_map()[get_sop_class_iod_map()[file.SOPClassUID]]:
            # functional groups may stand in either of two sequences, which this check can't know
            if module["usage"] == "M" and not module["key"].endswith("functional-groups"):
                check_required_attributes(file, module["key"])


def test_an_attribute_that_is_required_and_missing_is_found(folder: Path) -> None:
    file = files(folder, "images")[0]
    del file.ConversionType
    with pytest.raises(AttributeError, match="ConversionType"):
        check_required_attributes(file, "sc-equipment")


def test_no_two_objects_share_an_identifier_and_a_mask_is_of_its_pictures_study(folder: Path) -> None:
    pictures, masks = files(folder, "images"), files(folder, "segmentations")
    for name in ("SOPInstanceUID", "SeriesInstanceUID"):
        assert len({file[name].value for file in (*pictures, *masks)}) == 6
    assert len({file.StudyInstanceUID for file in pictures}) == 3
    for picture, mask in zip(pictures, masks, strict=True):
        assert (mask.StudyInstanceUID, mask.PatientID) == (picture.StudyInstanceUID, picture.PatientID)
        (series,) = mask.ReferencedSeriesSequence
        (referenced,) = series.ReferencedInstanceSequence
        assert referenced.ReferencedSOPInstanceUID == picture.SOPInstanceUID


def test_highdicom_reads_the_masks_segment_by_segment(folder: Path) -> None:
    pictures = files(folder, "images")
    for case, picture, path in zip(drawn(), pictures, sorted((folder / "segmentations").iterdir()), strict=True):
        found = highdicom.seg.segread(path)
        assert [found.get_segment_description(number).segment_label for number in (1, 2)] == ["lungs", "caries"]
        pixels = found.get_pixels_by_source_instance([picture.SOPInstanceUID], combine_segments=True)
        np.testing.assert_array_equal(pixels[0], case.mask)


def test_a_segment_is_automatic_by_the_generator_and_coded(folder: Path) -> None:
    lung, caries = files(folder, "segmentations")[0].SegmentSequence
    for segment in (lung, caries):
        assert segment.SegmentAlgorithmType == "AUTOMATIC"
        assert segment.SegmentAlgorithmName == "fedmedgen"
        (algorithm,) = segment.SegmentationAlgorithmIdentificationSequence
        assert "0f" * 32 in algorithm.AlgorithmParameters
    codes = [segment.SegmentedPropertyTypeCodeSequence[0] for segment in (lung, caries)]
    assert [(code.CodeValue, code.CodingSchemeDesignator) for code in codes] == [
        ("39607008", "SCT"),
        ("caries", "99FEDMEDGEN"),
    ]


@pytest.mark.parametrize(("public", "said"), [(False, "drawn together with"), (True, "of the public image nearest")])
def test_a_mask_says_whether_it_was_drawn_or_is_a_public_images(tmp_path: Path, public: bool, said: str) -> None:
    write_set(drawn(), tmp_path, format="dicom", datasheet={**SHEET, "public_masks": public})
    assert all(said in file.ContentDescription for file in files(tmp_path, "segmentations"))


def test_a_mask_of_background_alone_is_written(tmp_path: Path) -> None:
    case = Case(np.zeros((1, *SIZE), np.float32), "a.png", None, np.zeros(SIZE, np.uint8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_set(CaseSet((case,), (), MASKS), tmp_path, format="dicom", datasheet={})
    (found,) = (highdicom.seg.segread(path) for path in (tmp_path / "segmentations").iterdir())
    assert not found.pixel_array.any()


def test_without_masks_there_are_no_segmentations(tmp_path: Path) -> None:
    write_set(drawn(()), tmp_path, format="dicom", datasheet={})
    assert not (tmp_path / "segmentations").exists()
    assert "BodyPartExamined" not in files(tmp_path, "images")[0]


def test_the_set_reads_back_and_a_tree_of_all_its_files_gives_the_pictures(folder: Path, tmp_path: Path) -> None:
    settings = DataSettings(root=str(folder), mask_classes=MASKS, size=SIZE, min_patients=1)
    back = sources.load(settings, seed=0)
    assert back.rejected == ()
    for ours, theirs in zip(drawn(), back, strict=True):
        assert theirs.label == ours.label
        assert np.abs(grey(theirs.image).astype(int) - grey(ours.image)).max() <= 2  # the reader's percentile window
        np.testing.assert_array_equal(theirs.mask, ours.mask)
    for kind in ("images", "segmentations"):
        shutil.copytree(folder / kind, tmp_path / "tree" / f"{kind}-of-a-pacs")
    tree = sources.load(DataSettings(root=str(tmp_path / "tree"), size=SIZE, min_patients=1), seed=0)
    assert len(tree) == 3
    assert len(tree.rejected) == 3


@pytest.mark.skipif(shutil.which("dcmdump") is None, reason="needs dcmdump (apt package dcmtk)")
@pytest.mark.parametrize("kind", ["images", "segmentations"])
def test_dcmtk_reads_every_file_without_a_word_of_complaint(folder: Path, kind: str) -> None:
    for path in sorted((folder / kind).iterdir()):
        said = subprocess.run(["dcmdump", str(path)], capture_output=True, text=True, check=True)
        assert said.stderr == ""
        assert "(0008,001c) CS [YES]" in said.stdout


def test_words_are_made_fit_for_a_text_attribute() -> None:
    assert text(" a\\b\nc ") == "a/bc"
    assert len(text("x" * 99)) == 64
    assert Origin.of({"seed": 0, "study": None}) == Origin(seed="0")
