"""One picture file to an array of its pixels: PNG, JPEG, TIFF, BMP by Pillow, DICOM by `data.dicom`."""

import logging
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from fedmedgen.data import dicom
from fedmedgen.data.cases import FloatArray
from fedmedgen.data.pixels import check_size, to_grey
from fedmedgen.data.rejection import Unusable

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", *dicom.SUFFIXES})
PHOTOMETRIC, WHITE_IS_ZERO = 262, 0  # of TIFF; Pillow turns such pictures of 8 bits itself, and no deeper ones

_log = logging.getLogger(__name__)


def read_grey(path: Path) -> tuple[FloatArray, str | None]:
    """Brightness ``[H, W]`` in [-1, 1], and the patient where the file names one.

    **Raises** `Unusable` with the reason.
    """
    try:
        if path.stat().st_size == 0:
            raise Unusable("empty-file")
        header = path.suffix.lower() in dicom.SUFFIXES or dicom.is_dicom(path)
    except OSError as error:
        raise Unusable("file-unreadable", what=error.strerror or "an error of the disk") from None
    return dicom.read(path) if header else (to_grey(read_pixels(path)), None)


def read_pixels(path: Path) -> NDArray[np.generic]:
    """The pixels ``[H, W]`` or ``[H, W, 3]`` as stored, turned as viewers turn them where the file asks for it (EXIF).

    **Raises** `Unusable` with the reason.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of huge pictures; check_size refuses them
            with Image.open(path) as picture:
                check_size(picture.height, picture.width)
                frames = getattr(picture, "n_frames", 1)
                if frames > 1:
                    raise Unusable("several-frames", frames=frames)
                if _loses_depth(picture):
                    raise Unusable("deep-colour", mode=picture.mode)
                negative = _is_deep(picture) and _photometric(picture) == WHITE_IS_ZERO
                pixels = _load(ImageOps.exif_transpose(picture))
                return _negated(pixels) if negative else pixels
    except Image.DecompressionBombError:
        raise Unusable("picture-too-large", most=100, height="over 13000", width="13000") from None
    except UnidentifiedImageError:
        raise Unusable("not-a-picture") from None
    except Unusable:
        raise
    except Exception as error:  # decoders of broken files raise whatever they trip over
        _log.debug("%s: %r", path.name, error)
        raise Unusable("truncated-picture") from None


def _load(picture: Image.Image) -> NDArray[np.generic]:
    """Pixels of any mode: palettes, transparency and print colours become plain grey or colour."""
    if picture.mode in ("1", "P", "PA", "LA", "La"):
        return np.asarray(picture.convert("L" if picture.mode != "P" else "RGB"))
    if picture.mode in ("L", "RGB") or _is_deep(picture):
        return np.asarray(picture)
    return np.asarray(picture.convert("RGB"))


def _is_deep(picture: Image.Image) -> bool:
    return picture.mode in ("F", "I") or picture.mode.startswith("I;16")


def _loses_depth(picture: ImageFile.ImageFile) -> bool:
    """Whether 16 bits a channel come as 8: Pillow has no deeper colour, and no deeper grey beside transparency."""
    return not _is_deep(picture) and any(";16" in str(tile[3]) for tile in picture.tile)


def _photometric(picture: Image.Image) -> object:
    return getattr(picture, "tag_v2", {}).get(PHOTOMETRIC)


def _negated(pixels: NDArray[np.generic]) -> NDArray[np.generic]:
    return np.asarray(np.negative(pixels) if np.issubdtype(pixels.dtype, np.floating) else np.invert(pixels))
