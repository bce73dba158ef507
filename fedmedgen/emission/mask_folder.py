"""Radiographs on disk to masks, overlays and a table of what the masks measure."""

import errno
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from fedmedgen.data import dicom, pictures
from fedmedgen.data.cases import FloatArray, Rejected
from fedmedgen.data.rejection import Unusable
from fedmedgen.emission import mask_table
from fedmedgen.emission.mask_table import SEGMENTER, TABLE
from fedmedgen.emission.overlay import overlay
from fedmedgen.emission.secondary_capture import save
from fedmedgen.emission.segmenting import mask_of, measures
from fedmedgen.errors import DataError
from fedmedgen.models.segmenter import Segmenter

_log = logging.getLogger(__name__)
PARTS = ("masks", "overlays", "segmentations")
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

    rows: list[mask_table.Row] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)


def radiographs(place: Path) -> dict[str, Path]:
    """The picture, or all pictures below the folder, by name relative to it, behind links too.

    Passed over are hidden files, others, what this command made, and `masks` beside `images`, as sets have them.

    **Raises** `DataError` if there is none.
    """
    if place.is_file():
        return {place.name: place}
    if not place.is_dir():
        raise DataError(f"expected a radiograph or a folder of them at {place}, found nothing: correct the path")
    files = {path.relative_to(place).as_posix(): path for path in sorted(_below(place))}
    hidden = {name for name in files if name.startswith(".") or "/." in name}
    made = {path.parent / part for path in files.values() if path.name == TABLE for part in PARTS}
    made |= {path.parent for path in files.values() if _holds_masks(path.parent, place)}
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
        while chosen.casefold() in taken or {f"{chosen}.png".casefold(), f"{chosen}.dcm".casefold()} & folders:
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
    """Write masks/, overlays/, segments.csv and, as DICOM, segmentations/; what stands there already isn't made again.

    **Guarantee** a bad file is set aside and touches no other; where no file is good, nothing is written.

    **Raises** `RunError` if the folder holds masks by another segmenter.

    masks/*.png hold the class's number x 255 / (M - 1), as a set's masks do.
    """
    outcome, names = Outcome(), names_of(files)
    known = {mask_table.cell(name): name for name in files}
    standing = {
        file: row for file, row in mask_table.read(out, wanted.segmenter).items()
        if file not in known or _stands(row, out, names[known[file]], wanted)
    }  # fmt: skip
    mask_table.restart(out, standing.values())
    for number, (name, path) in enumerate(files.items(), start=1):
        try:
            row = standing.get(mask_table.cell(name)) or _write_one(segmenter, name, path, out, names[name], wanted)
            outcome.rows.append(row)
        except Unusable as unusable:
            outcome.rejected.append(Rejected(name, unusable.kind, str(unusable)))
        except OSError as error:
            if error.errno not in OF_ONE_FILE:
                raise
            reason = Unusable("mask-not-written", what=error.strerror or "an error of the disk")
            outcome.rejected.append(Rejected(name, reason.kind, str(reason)))
        progress(number)
    return outcome


def _stands(row: mask_table.Row, out: Path, name: str, wanted: Wanted) -> bool:
    files = [out / "masks" / f"{name}.png", out / "overlays" / f"{name}.png"]
    if wanted.format == "dicom":
        files.append(out / "segmentations" / f"{name}.dcm")
    return row["mask"] == mask_table.cell(f"{name}.png") and all(file.is_file() for file in files)


def _write_one(segmenter: Segmenter, file: str, path: Path, out: Path, name: str, wanted: Wanted) -> dict[str, object]:
    config, device = segmenter.config, next(segmenter.parameters()).device
    picture = _read(path)
    mask = mask_of(lambda images: segmenter(images.to(device)), picture, config.size, wanted.fit)
    row: dict[str, object] = {
        "file": file,
        "mask": f"{name}.png",
        **measures(mask, config.mask_classes),
        SEGMENTER: wanted.segmenter,
    }
    segmentation = None
    if wanted.format == "dicom":
        from fedmedgen.emission.patient_segmentation import patient_segmentation

        segmentation = patient_segmentation(mask, path, config.mask_classes, wanted.segmenter)
    if not (out / TABLE).is_file():
        mask_table.write(out, row)
    if segmentation is not None:
        save(segmentation, _ready(out / "segmentations" / f"{name}.dcm"))
    levels = np.linspace(0, 255, len(config.mask_classes)).round().astype(np.uint8)
    Image.fromarray(levels[mask]).save(_ready(out / "masks" / f"{name}.png"))
    Image.fromarray(overlay(picture, mask)).save(_ready(out / "overlays" / f"{name}.png"))
    mask_table.add(out, row)
    return row


def _read(path: Path) -> FloatArray:
    try:
        return pictures.read_grey(path)[0]
    except Unusable:
        raise
    except Exception as error:  # whatever else a picture does, it does to nobody else's
        _log.debug("%s: %r", path.name, error)
        raise Unusable("file-unreadable", what=type(error).__name__) from None


def _below(place: Path) -> Iterator[Path]:
    """Every file below the folder once, whatever links lead to it."""
    seen: set[str] = set()
    for folder, folders, names in os.walk(place, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (path for name in names if (path := Path(folder, name)).is_file())


def _holds_masks(folder: Path, place: Path) -> bool:
    """Whether the folder is, or lies in, `masks` beside `images`, below the place."""
    within = [home for home in (folder, *folder.parents) if place in home.parents]
    return any(home.name == "masks" and (home.parent / "images").is_dir() for home in within)


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
