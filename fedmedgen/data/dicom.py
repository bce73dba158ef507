"""One DICOM radiograph to brightness: MONOCHROME1 inverted, rescaled, windowed; plain or JPEG 2000."""

import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray

from fedmedgen.data.cases import FloatArray
from fedmedgen.data.pixels import check_size, to_grey
from fedmedgen.data.rejection import Unusable

SUFFIXES = frozenset({".dcm", ".dicom", ".ima"})
RADIOGRAPHS = ("CR", "DX", "RG", "PX", "IO", "MG", "RF", "XA", "SC", "OT")
_GREY = ("MONOCHROME1", "MONOCHROME2")
_SAMPLES = {"MONOCHROME1": 1, "MONOCHROME2": 1, "RGB": 3}
_log = logging.getLogger(__name__)


def is_dicom(path: Path) -> bool:
    """Whether the file carries the mark of a DICOM file, whatever it is called."""
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def read(path: Path) -> tuple[FloatArray, str | None]:
    """Brightness ``[H, W]`` in [-1, 1] and the PatientID, None where it is empty.

    The window is the 0.5th to 99.5th percentile of the picture's own values, padding left out.

    **Raises** `Unusable` with the reason.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom warns of harmless departures from the standard
        try:
            return _read(path)
        except Unusable:
            raise
        except Exception as error:  # attributes are parsed when asked for, and broken ones raise anything
            _log.debug("%s: %r", path.name, error)
            raise Unusable("dicom-unreadable") from None


def _read(path: Path) -> tuple[FloatArray, str | None]:
    header = pydicom.dcmread(path)
    photometric = _check(header)
    values = _decode(header)
    if photometric == "RGB":
        return to_grey(_eight_bits(values, header)), _patient(header)
    grey = _rescale(values.astype(np.float32), header)
    if photometric == "MONOCHROME1":
        grey = grey.max() - grey
    return to_grey(grey), _patient(header)


def _check(header: Any) -> str:
    """The photometric interpretation of a radiograph that can be read here."""
    if "PixelData" not in header:
        raise Unusable("dicom-without-picture", what=str(header.get("Modality", "")) or "no modality")
    modality = str(header.get("Modality", ""))
    if modality and modality not in RADIOGRAPHS:
        raise Unusable("dicom-modality", got=modality, expected=", ".join(RADIOGRAPHS))
    for name in ("Rows", "Columns", "BitsAllocated", "BitsStored", "SamplesPerPixel", "PhotometricInterpretation"):
        if header.get(name) in (None, "", 0):
            raise Unusable("dicom-attribute", name=name)
    check_size(int(header.Rows), int(header.Columns))
    frames = int(header.get("NumberOfFrames") or 1)
    if frames > 1:
        raise Unusable("several-frames", frames=frames)
    photometric = str(header.PhotometricInterpretation)
    if photometric not in _SAMPLES or _SAMPLES[photometric] != int(header.SamplesPerPixel):
        raise Unusable("dicom-colour", got=photometric)
    return photometric


def _decode(header: Any) -> NDArray[np.generic]:
    syntax = header.file_meta.get("TransferSyntaxUID") if hasattr(header, "file_meta") else None
    if syntax is None:
        raise Unusable("dicom-attribute", name="TransferSyntaxUID")
    if not syntax.is_compressed:
        expected = int(header.Rows) * int(header.Columns) * int(header.SamplesPerPixel) * int(header.BitsAllocated) // 8
        if len(header.PixelData) < expected:
            raise Unusable("dicom-truncated", expected=expected, got=len(header.PixelData))
    level = logging.getLogger("pydicom").level
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    try:
        return np.asarray(header.pixel_array)
    except Exception as error:  # decoders raise whatever their plugins raise
        _log.debug("pixels of %s: %s", syntax.name, error)
        raise Unusable("dicom-pixels", syntax=syntax.name) from None
    finally:
        logging.getLogger("pydicom").setLevel(level)


def _rescale(values: FloatArray, header: Any) -> FloatArray:
    """Padding set to the darkest value that is left, then slope and intercept."""
    padding = header.get("PixelPaddingValue")
    if isinstance(padding, (int, float)):
        outside = values == float(padding)
        if outside.any() and not outside.all():
            bright_is_air = str(header.PhotometricInterpretation) == "MONOCHROME1"
            values[outside] = values[~outside].max() if bright_is_air else values[~outside].min()
    slope, intercept = _number(header, "RescaleSlope", 1.0), _number(header, "RescaleIntercept", 0.0)
    if slope == 0:
        raise Unusable("dicom-attribute", name="RescaleSlope")
    return values * np.float32(slope) + np.float32(intercept)


def _number(header: Any, name: str, default: float) -> float:
    if name not in header:
        return default
    try:
        value = float(header.get(name))
    except (TypeError, ValueError):
        raise Unusable("dicom-attribute", name=name) from None
    if not np.isfinite(value):
        raise Unusable("dicom-attribute", name=name)
    return value


def _eight_bits(values: NDArray[np.generic], header: Any) -> NDArray[np.generic]:
    return values.astype(np.uint8) if int(header.BitsStored) <= 8 else values


def _patient(header: Any) -> str | None:
    return str(header.get("PatientID") or "").strip() or None
