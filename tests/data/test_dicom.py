"""DICOM radiographs: what is dark, what is bright, and whose it is, checked on made and on real files."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from pydicom.data import get_testdata_file
from pydicom.uid import RLELossless

from fedmedgen.data import sources
from fedmedgen.data.dicom import read
from fedmedgen.settings import DataSettings

_spec = importlib.util.spec_from_file_location("made_dicom", Path(__file__).with_name("test_bad_dicom.py"))
assert _spec is not None
assert _spec.loader is not None
_made = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_made)
save = _made.save


def _real(name: str) -> Path:
    path = get_testdata_file(name, download=False)
    if path is None:
        pytest.skip(f"{name} is not here: pip install pydicom-data")
    return Path(path)


def test_monochrome1_is_inverted(tmp_path):
    save(tmp_path / "two.dcm")
    save(tmp_path / "one.dcm", PhotometricInterpretation="MONOCHROME1")
    two, one = (read(tmp_path / f"{name}.dcm")[0] for name in ("two", "one"))
    assert two[0, 0] == -1
    assert two[-1, -1] == 1
    assert np.allclose(one, -two, atol=1e-5)


def test_a_negative_slope_turns_brightness_round(tmp_path):
    save(tmp_path / "plain.dcm")
    save(tmp_path / "turned.dcm", RescaleSlope="-1", RescaleIntercept="4095")
    plain, turned = (read(tmp_path / f"{name}.dcm")[0] for name in ("plain", "turned"))
    assert np.allclose(turned, -plain, atol=1e-5)


def test_padding_is_dark_and_does_not_move_the_window(tmp_path):
    pixels = np.arange(256, dtype=np.uint16).reshape(16, 16) + 1000
    save(tmp_path / "bare.dcm", PixelData=pixels.tobytes())
    pixels[:4] = 4000
    save(tmp_path / "padded.dcm", PixelData=pixels.tobytes(), PixelPaddingValue=4000)
    bare, padded = (read(tmp_path / f"{name}.dcm")[0] for name in ("bare", "padded"))
    assert (padded[:4] == -1).all()
    assert padded[-1, -1] == 1
    assert np.corrcoef(bare[5:].ravel(), padded[5:].ravel())[0, 1] > 0.999


@pytest.mark.parametrize(("bits", "signed"), [(8, 0), (10, 0), (12, 0), (15, 0), (16, 0), (12, 1), (16, 1)])
def test_any_bit_depth_gives_the_full_range(tmp_path, bits, signed):
    top = 2 ** (bits - signed) - 1
    values = np.linspace(-top if signed else 0, top, 256).reshape(16, 16)
    kind = {(8, 0): np.uint8, (8, 1): np.int8}.get((bits, signed), np.int16 if signed else np.uint16)
    save(
        tmp_path / "x.dcm",
        BitsAllocated=8 if bits == 8 else 16,
        BitsStored=bits,
        HighBit=bits - 1,
        PixelRepresentation=signed,
        PixelData=values.astype(kind).tobytes(),
    )
    grey, _ = read(tmp_path / "x.dcm")
    assert grey[0, 0] == -1
    assert grey[-1, -1] == 1
    assert np.all(np.diff(grey.ravel()) >= 0)


def test_a_colour_secondary_capture_becomes_grey(tmp_path):
    pixels = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16)[..., None], 3, axis=2)
    save(
        tmp_path / "x.dcm",
        PhotometricInterpretation="RGB",
        SamplesPerPixel=3,
        PlanarConfiguration=0,
        BitsAllocated=8,
        BitsStored=8,
        HighBit=7,
        PixelData=pixels.tobytes(),
    )
    grey, _ = read(tmp_path / "x.dcm")
    assert np.allclose(grey.ravel(), np.arange(256) / 127.5 - 1, atol=0.01)


def test_run_length_encoding_is_read_too(tmp_path):
    import pydicom

    save(tmp_path / "plain.dcm")
    header = pydicom.dcmread(tmp_path / "plain.dcm")
    header.compress(RLELossless)
    header.save_as(tmp_path / "packed.dcm")
    assert np.array_equal(read(tmp_path / "plain.dcm")[0], read(tmp_path / "packed.dcm")[0])


def test_a_real_chest_radiograph_shows_air_dark_and_bone_bright():
    grey, patient = read(_real("RG1_UNCI.dcm"))
    assert grey.shape == (1955, 1841)
    assert patient
    middle, corner = grey[800:1300, 850:990].mean(), grey[:60, :60].mean()
    lungs = (grey[700:1000, 400:600].mean() + grey[700:1000, 1250:1450].mean()) / 2
    assert middle > lungs + 0.3
    assert corner < 0


def test_jpeg_2000_gives_the_same_picture_as_the_uncompressed_file():
    plain, packed = (read(_real(name))[0] for name in ("RG1_UNCI.dcm", "RG1_J2KI.dcm"))
    assert np.abs(plain - packed).mean() < 0.02


def test_a_tree_of_dicom_files_is_one_site_with_patients_from_the_files(tmp_path):
    for patient, study in (("anna", "1"), ("anna", "2"), ("bert", "1")):
        folder = tmp_path / patient / study
        folder.mkdir(parents=True)
        save(folder / "IM0001", PatientID=patient)
    (tmp_path / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    (tmp_path / "README.txt").write_text("about these files")
    cases = sources.scan(DataSettings(root=str(tmp_path), size=(16, 16)), seed=0)
    assert [(case.name, case.patient) for case in cases] == [
        ("anna/1/IM0001", "anna"),
        ("anna/2/IM0001", "anna"),
        ("bert/1/IM0001", "bert"),
    ]
    assert cases.sites == (tmp_path.name,)
    assert cases.rejected == ()


def test_a_labels_csv_beside_dicom_files_labels_them(tmp_path):
    for part in ("x", "y"):
        (tmp_path / part).mkdir()
        save(tmp_path / part / "a.dcm", PatientID=f"{part}a")
        save(tmp_path / part / "b.dcm", PatientID=f"{part}b")
        (tmp_path / part / "labels.csv").write_text(f"filename,label_name\na.dcm,normal\nb.dcm,{part}\n")
    cases = sources.scan(DataSettings(root=str(tmp_path), size=(16, 16)), seed=0)
    assert [cases.classes[case.label] for case in cases] == ["normal", "x", "normal", "y"]
    assert [case.patient for case in cases] == ["xa", "xb", "ya", "yb"]


def test_dicom_files_may_lie_in_images(tmp_path):
    (tmp_path / "north" / "images").mkdir(parents=True)
    save(tmp_path / "north" / "images" / "a.dcm")
    cases = sources.scan(DataSettings(root=str(tmp_path), size=(16, 16)), seed=0)
    assert [(case.site, case.patient) for case in cases] == [("north", "a")]
