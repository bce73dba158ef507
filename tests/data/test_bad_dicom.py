"""Each kind of bad DICOM file, made for real: set aside with the words of docs/bad-input.md."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, ExplicitVRLittleEndian, JPEG2000Lossless, generate_uid

from fedmedgen.data import sources
from fedmedgen.data.dicom import read
from fedmedgen.data.rejection import KINDS, Unusable
from fedmedgen.settings import DataSettings

DIGITAL_X_RAY = UID("1.2.840.10008.5.1.4.1.1.1.1")


def save(path: Path, *, syntax: UID = ExplicitVRLittleEndian, without: str = "", **changes: Any) -> None:
    """Write a radiograph of 16x16 pixels and 12 bits, changed as told."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = syntax, DIGITAL_X_RAY
    meta.MediaStorageSOPInstanceUID = generate_uid()
    pixels = np.arange(256, dtype=np.uint16).reshape(16, 16) * 16
    attributes = {
        "SOPClassUID": DIGITAL_X_RAY,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "PatientID": path.stem,
        "Modality": "DX",
        "Rows": 16,
        "Columns": 16,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 12,
        "HighBit": 11,
        "PixelRepresentation": 0,
        "PixelData": pixels.tobytes(),
        **changes,
    }
    header = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    for name, value in attributes.items():
        if name != without:
            setattr(header, name, value)
    if "PixelData" in header:
        header["PixelData"].VR = "OW"
    if syntax.is_compressed:
        header["PixelData"].is_undefined_length = True
    header.save_as(path, enforce_file_format=True)


def dicom_unreadable(path: Path) -> None:
    """a .dcm file of zeros"""
    path.write_bytes(b"\0" * 500)


def dicom_without_picture(path: Path) -> None:
    """a structured report"""
    save(path, without="PixelData", Modality="SR")


def dicom_modality(path: Path) -> None:
    """an MR image"""
    save(path, Modality="MR")


def dicom_colour(path: Path) -> None:
    """a picture of palette colours"""
    save(path, PhotometricInterpretation="PALETTE COLOR")


def dicom_attribute(path: Path) -> None:
    """no Rows"""
    save(path, without="Rows")


def dicom_pixels(path: Path) -> None:
    """a JPEG 2000 stream that is broken"""
    save(path, syntax=JPEG2000Lossless, PixelData=encapsulate([b"no JPEG 2000 here"]))


def dicom_truncated(path: Path) -> None:
    """half of the pixels"""
    save(path, PixelData=b"\1\2" * 128)


MAKERS = {
    make.__name__.replace("_", "-"): make
    for make in (
        dicom_unreadable,
        dicom_without_picture,
        dicom_modality,
        dicom_colour,
        dicom_attribute,
        dicom_pixels,
        dicom_truncated,
    )
}


def _scan(folder: Path) -> Any:
    return sources.scan(DataSettings(root=str(folder), size=(16, 16)), seed=0)


@pytest.mark.parametrize("kind", MAKERS)
def test_a_bad_dicom_file_is_set_aside_in_the_documented_words(kind, tmp_path, documented):
    save(tmp_path / "good.dcm")
    MAKERS[kind](tmp_path / "bad.dcm")
    cases = _scan(tmp_path)
    found = [(bad.kind, (MAKERS[kind].__doc__, bad.reason)) for bad in cases.rejected]
    assert found == [(kind, documented["DICOM"][kind])]
    assert [case.patient for case in cases] == ["good"]


def test_every_documented_kind_of_bad_dicom_file_is_made_here(documented):
    assert set(documented["DICOM"]) == set(MAKERS)


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"RescaleSlope": 0}, "dicom-attribute"),
        ({"NumberOfFrames": 2}, "several-frames"),
        ({"Rows": 4}, "picture-too-small"),
        ({"PixelData": b"\0\0" * 256}, "picture-flat"),
        ({"PatientID": ""}, "missing-patient"),
    ],
)
def test_faults_that_dicom_shares_with_other_pictures_are_named_alike(tmp_path, changes, kind):
    save(tmp_path / "good.dcm")
    save(tmp_path / "bad.dcm", **changes)
    assert [bad.kind for bad in _scan(tmp_path).rejected] == [kind]


@pytest.mark.parametrize("share", [0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95])
def test_a_dicom_file_cut_anywhere_is_set_aside(tmp_path, share):
    save(tmp_path / "good.dcm")
    content = (tmp_path / "good.dcm").read_bytes()
    (tmp_path / "cut.dcm").write_bytes(content[: int(share * len(content))])
    cases = _scan(tmp_path)
    assert [case.name for case in cases] == ["good.dcm"]
    assert [bad.file.split("/")[-1] for bad in cases.rejected] == ["cut.dcm"]


def test_no_damage_to_a_dicom_file_stops_the_program(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "x.dcm"
    save(path)
    whole = path.read_bytes()
    outcomes = set()
    for _ in range(200):
        content = bytearray(whole)
        for place in rng.integers(128, len(content) - 512, 2):
            content[place] = rng.integers(0, 256)
        path.write_bytes(bytes(content))
        try:
            outcomes.add(read(path)[0].ndim)
        except Unusable as unusable:
            outcomes.add(unusable.kind)
    assert outcomes <= {2, *KINDS}
    assert "dicom-unreadable" in outcomes
