"""Radiographs on disk to masks, overlays and a table of what the masks measure."""

import errno
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from fedmedgen.data import dicom, pictures
from fedmedgen.data.cases import FloatArray, Rejected
from fedmedgen.data.folders import write_table
from fedmedgen.data.rejection import Unusable
from fedmedgen.emission.overlay import overlay
from fedmedgen.emission.secondary_capture import save
from fedmedgen.emission.segmenting import mask_of, measures
from fedmedgen.errors import DataError
from fedmedgen.models.segmenter import Segmenter

_log = logging.getLogger(__name__)
TABLE, PARTS = "segments.csv", ("masks", "overlays", "segmentations")
OF_ONE_FILE = (errno.ENAMETOOLONG, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)  # not a full disk's, nor a lost one's
_NO_PICTURE = "dicomdir"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """How pictures were fitted in training, and what is written; `segmenter` is the hash of its folder."""

    fit: Literal["pad", "squash"]
    format: Literal["png", "dicom"] = "png"
    segmenter: str = ""


@dataclass
class Outcome:
    """A row of segments.csv for each picture, and the files set aside."""

    rows: list[dict[str, object]] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)


def radiographs(place: Path) -> dict[str, Path]:
    """The picture, or all pictures below the folder, by name relative to it; hidden files and others are passed over.

    **Raises** `DataError` if there is none.
    """
    if place.is_file():
        return {place.name: place}
    if not place.is_dir():
        raise DataError(f"expected a radiograph or a folder of them at {place}, found nothing: correct the path")
    files = {path.relative_to(place).as_posix(): path for path in sorted(place.rglob("*")) if path.is_file()}
    hidden = {name for name in files if name.startswith(".") or "/." in name}
    made = {table.parent / part for table in place.rglob(TABLE) for part in PARTS}  # by this command, within the folder
    found = {
        name: path for name, path in files.items()
        if name not in hidden and not made & {*path.parents} and _may_be_picture(path)
    }  # fmt: skip
    if not found:
        raise DataError(
            f"expected PNG or DICOM radiographs below {place}, found none among {len(files)} files: name another folder"
        )
    return found


def not_dicom(files: Mapping[str, Path]) -> list[str]:
    """Names of the files that no DICOM reader would take."""
    return [name for name, path in files.items() if not _is_dicom(path)]


def names_of(files: Iterable[str]) -> dict[str, str]:
    """For each file the name of what is made from it, less a known suffix; whole where two would share one.

    **Guarantee** no two are the same, nor on disks that don't tell capitals from small letters.
    """
    short = {name: _stem(name) for name in files}
    count = Counter(stem.casefold() for stem in short.values())
    given: dict[str, str] = {}
    taken: set[str] = set()
    folders = {str(parent).casefold() for name in short for parent in Path(name).parents}
    for name, stem in short.items():
        chosen = name if count[stem.casefold()] > 1 else stem
        while chosen.casefold() in taken or f"{chosen}.png".casefold() in folders:
            chosen += "_"
        taken.add(chosen.casefold())
        given[name] = chosen
    return given


def write_masks(
    segmenter: Segmenter,
    files: Mapping[str, Path],
    out: Path,
    wanted: Wanted,
    progress: Callable[[int], None] = lambda _: None,
) -> Outcome:
    """Write masks/, overlays/, segments.csv and, as DICOM, segmentations/.

    **Guarantee** a bad file is set aside and touches no other; where no file is good, nothing is written.

    masks/*.png hold the class's number x 255 / (M - 1), as a set's masks do.
    """
    outcome, names = Outcome(), names_of(files)
    try:
        for number, (name, path) in enumerate(files.items(), start=1):
            try:
                row = _write_one(segmenter, path, out, names[name], wanted)
                outcome.rows.append({"file": name, "mask": f"{names[name]}.png", **row})
            except Unusable as unusable:
                outcome.rejected.append(Rejected(name, unusable.kind, str(unusable)))
            except OSError as error:
                if error.errno not in OF_ONE_FILE:
                    raise
                reason = Unusable("mask-not-written", what=error.strerror or "an error of the disk")
                outcome.rejected.append(Rejected(name, reason.kind, str(reason)))
            progress(number)
    finally:
        if outcome.rows:
            write_table(out / TABLE, outcome.rows)
    return outcome


def _write_one(segmenter: Segmenter, path: Path, out: Path, name: str, wanted: Wanted) -> dict[str, float | int]:
    config, device = segmenter.config, next(segmenter.parameters()).device
    picture = _read(path)
    mask = mask_of(lambda images: segmenter(images.to(device)), picture, config.size, wanted.fit)
    if wanted.format == "dicom":
        from fedmedgen.emission.patient_segmentation import patient_segmentation

        file = patient_segmentation(mask, path, config.mask_classes, wanted.segmenter)
        save(file, _ready(out / "segmentations" / f"{name}.dcm"))
    levels = np.linspace(0, 255, len(config.mask_classes)).round().astype(np.uint8)
    Image.fromarray(levels[mask]).save(_ready(out / "masks" / f"{name}.png"))
    Image.fromarray(overlay(picture, mask)).save(_ready(out / "overlays" / f"{name}.png"))
    return measures(mask, config.mask_classes)


def _read(path: Path) -> FloatArray:
    try:
        return pictures.read_grey(path)[0]
    except Unusable:
        raise
    except Exception as error:  # whatever else a picture does, it does to nobody else's
        _log.debug("%s: %r", path.name, error)
        raise Unusable("file-unreadable", what=type(error).__name__) from None


def _ready(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _stem(name: str) -> str:
    path = Path(name)
    return path.with_suffix("").as_posix() if path.suffix.lower() in pictures.SUFFIXES else name


def _may_be_picture(path: Path) -> bool:
    return path.name.lower() != _NO_PICTURE and (path.suffix.lower() in pictures.SUFFIXES or _is_dicom(path))


def _is_dicom(path: Path) -> bool:
    """A file that can't be opened counts: reading it will say why it is set aside."""
    try:
        return path.suffix.lower() in dicom.SUFFIXES or dicom.is_dicom(path)
    except OSError:
        return True
