"""Synthetic sets on disk read back as real sets are."""

import json
from pathlib import Path

import numpy as np
import pydicom
import pytest

from fedmedgen.data import phantoms, sources
from fedmedgen.data.cases import Case, CaseSet
from fedmedgen.emission import write_set
from fedmedgen.emission.writing import grey
from fedmedgen.errors import SettingsError
from fedmedgen.settings import DataSettings

SIZE = (16, 20)


def synthetic(mask_classes: tuple[str, ...] = ("background", "lung"), count: int = 4) -> CaseSet:
    random = np.random.default_rng(0)
    cases = []
    for number in range(count):
        image = np.linspace(-1, 1, SIZE[0] * SIZE[1]).reshape(1, *SIZE) + random.normal(0, 0.1, (1, *SIZE))
        mask = random.integers(0, len(mask_classes), SIZE).astype(np.uint8) if mask_classes else None
        name = f"synthetic-{number:06d}.png"
        cases.append(
            Case(image.clip(-1, 1).astype(np.float32), name, number % 2, mask, site="synthetic", split="train")
        )
    return CaseSet(tuple(cases), ("normal", "sick"), mask_classes)


def read(root: Path, mask_classes: tuple[str, ...]) -> CaseSet:
    return sources.load(DataSettings(root=str(root), mask_classes=mask_classes, size=SIZE, min_patients=1), seed=0)


@pytest.mark.parametrize("masks", [(), ("background", "lung"), ("background", "lung", "lesion"), tuple("abcd")])
@pytest.mark.parametrize("format", ["png", "npz"])
def test_a_set_reads_back_as_it_was_written(tmp_path: Path, masks: tuple[str, ...], format: str) -> None:
    cases = synthetic(masks)
    write_set(cases, tmp_path, format=format, datasheet={})  # type: ignore[arg-type]
    back = read(tmp_path / "set.npz" if format == "npz" else tmp_path, masks)
    assert back.rejected == ()
    assert (back.classes, back.mask_classes) == (cases.classes, cases.mask_classes)
    for ours, theirs in zip(cases, back, strict=True):
        assert (theirs.label, theirs.split, theirs.patient) == (ours.label, "train", None)
        np.testing.assert_array_equal(grey(theirs.image), grey(ours.image))
        np.testing.assert_array_equal(theirs.mask, ours.mask)


def test_a_dicom_set_reads_back_with_its_labels_and_masks(tmp_path: Path) -> None:
    cases = synthetic()
    write_set(cases, tmp_path, format="dicom", datasheet={})
    back = read(tmp_path, cases.mask_classes)
    assert back.rejected == ()
    assert [case.label for case in back] == [0, 1, 0, 1]
    for ours, theirs in zip(cases, back, strict=True):
        assert np.corrcoef(ours.image.ravel(), theirs.image.ravel())[0, 1] > 0.999
        np.testing.assert_array_equal(theirs.mask, ours.mask)


def test_a_dicom_file_says_that_it_is_synthetic_and_has_identifiers_of_its_own(tmp_path: Path) -> None:
    cases = synthetic()
    write_set(cases, tmp_path, format="dicom", datasheet={})
    files = [pydicom.dcmread(path) for path in sorted((tmp_path / "images").iterdir())]
    assert {(file.SyntheticData, file.ConversionType) for file in files} == {("YES", "SYN")}
    assert len({file.SOPInstanceUID for file in files}) == 4
    assert len({file.StudyInstanceUID for file in files}) == 4
    np.testing.assert_array_equal(files[0].pixel_array, grey(cases.cases[0].image))


def test_the_datasheet_says_what_is_there_and_what_was_told(tmp_path: Path) -> None:
    write_set(synthetic(), tmp_path, datasheet={"seed": 7, "privacy": {"epsilon": 8.0}})
    sheet = json.loads((tmp_path / "datasheet.json").read_text())
    assert sheet == {
        "cases": 4,
        "classes": ["normal", "sick"],
        "mask_classes": ["background", "lung"],
        "seed": 7,
        "privacy": {"epsilon": 8.0},
    }


def test_an_npz_of_cases_without_labels_is_refused_in_words(tmp_path: Path) -> None:
    unlabelled = CaseSet((Case(np.zeros((1, 8, 8), np.float32), "a.png"),), ())
    with pytest.raises(SettingsError, match="an npz needs a label for every case"):
        write_set(unlabelled, tmp_path, format="npz", datasheet={})


def test_a_set_without_labels_reads_back_without_labels(tmp_path: Path) -> None:
    drawn = phantoms.draw("chest", 12, size=(16, 16), seed=0)
    cases = tuple(Case(image=case.image, name=case.name) for case in drawn)
    write_set(CaseSet(cases, ()), tmp_path / "set", datasheet={})
    found = sources.load(DataSettings(root=str(tmp_path / "set"), size=(16, 16)), seed=0)
    assert (len(found), found.rejected, {case.label for case in found}) == (12, (), {None})
