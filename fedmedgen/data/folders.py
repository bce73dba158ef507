"""A site's folder: images/ with optional masks/ and labels.csv, or any tree of DICOM files."""

import csv
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from fedmedgen.data import dicom
from fedmedgen.data.cases import Case, MaskArray, Rejected
from fedmedgen.data.pictures import read_grey, read_pixels
from fedmedgen.data.pixels import mask_values, resize, resize_mask
from fedmedgen.data.rejection import Unusable, reject
from fedmedgen.data.tables import Row, Table, read_table
from fedmedgen.settings import DataSettings

TABLE = "labels.csv"
_log = logging.getLogger(__name__)
_NOT_PICTURES = ("thumbs.db", "desktop.ini", "dicomdir")


@dataclass
class Found:
    """What a source holds before labels become class numbers: cases, the row of each, files set aside."""

    cases: list[Case] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    labelled: bool = False

    def add(self, other: "Found") -> None:
        """Take what another holds, too."""
        self.cases += other.cases
        self.rows += other.rows
        self.rejected += other.rejected
        self.labelled = self.labelled or other.labelled


def is_site(folder: Path) -> bool:
    return (folder / "images").is_dir()


def read_site(folder: Path, site: str, settings: DataSettings) -> Found:
    """All usable cases of one site, resized, labels still as labels.csv writes them."""
    return read_images(folder, site, settings) if is_site(folder) else read_dicom(folder, site, settings)


def read_images(folder: Path, site: str, settings: DataSettings, mask_suffix: str = "") -> Found:
    """The pictures in images/; a mask has its picture's name, with `mask_suffix` in place of the picture's if given.

    Without it a mask of another suffix counts too, so that two pictures of one stem may share one.
    """
    found = Found()
    masks = _files(folder / "masks") if settings.mask_classes else {}
    _read_group(found, _Group(site, folder, "", _files(folder / "images"), masks, mask_suffix), settings)
    return found


def read_dicom(folder: Path, site: str, settings: DataSettings) -> Found:
    """DICOM files in any tree."""
    found = Found()
    for group in _dicom_groups(folder, site):
        _read_group(found, group, settings)
    return found


@dataclass(frozen=True)
class _Group:
    """Pictures that one labels.csv speaks of, by the name that it uses for them."""

    site: str
    folder: Path  # where labels.csv is
    inside: str  # the same, below the site
    pictures: Mapping[str, Path]
    masks: Mapping[str, Path] = field(default_factory=dict)
    mask_suffix: str = ""

    def mask_of(self, name: str) -> Path | None:
        """The mask of a picture."""
        stem = Path(name).with_suffix("").as_posix()
        if self.mask_suffix:
            return self.masks.get(stem + self.mask_suffix)
        return self.masks.get(name, self.masks.get(self._stems.get(stem, "")))

    @cached_property
    def _stems(self) -> dict[str, str]:
        return {Path(name).with_suffix("").as_posix(): name for name in self.masks}


def _files(folder: Path) -> dict[str, Path]:
    """Files below a folder by their name relative to it, hidden ones left out."""
    paths = sorted(path for path in folder.rglob("*") if _is_file(path)) if folder.is_dir() else []
    named = {path.relative_to(folder).as_posix(): path for path in paths}
    return {
        name: path
        for name, path in named.items()
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.name.lower() not in _NOT_PICTURES
    }


def _is_file(path: Path) -> bool:
    """One that can't be looked at counts: reading it will say why it is set aside."""
    try:
        return path.is_file()
    except OSError:
        return True


def _may_be_dicom(path: Path) -> bool:
    if path.suffix:
        return path.suffix.lower() in dicom.SUFFIXES
    try:
        return dicom.is_dicom(path)
    except OSError:
        return True


def _dicom_groups(folder: Path, site: str) -> Iterator[_Group]:
    """DICOM files below `folder`, by the nearest folder above each that holds a labels.csv."""
    files = _files(folder)
    tables = {path.parent for path in files.values() if path.name == TABLE} | {folder}
    groups: dict[Path, dict[str, Path]] = {}
    for path in files.values():
        if _may_be_dicom(path):
            home = next(parent for parent in path.parents if parent in tables)
            groups.setdefault(home, {})[path.relative_to(home).as_posix()] = path
    for home, pictures in sorted(groups.items()):
        inside = home.relative_to(folder).as_posix()
        yield _Group(site, home, "" if inside == "." else inside + "/", pictures)


def _read_group(found: Found, group: _Group, settings: DataSettings) -> None:
    place = f"{group.site}/{group.inside}"
    try:
        path = group.folder / TABLE
        table = read_table(path, settings.columns, fixed=bool(settings.classes)) if path.is_file() else None
    except Unusable as unusable:
        found.rejected.append(Rejected(place + TABLE, unusable.kind, str(unusable)))
        return
    if table is not None:
        found.labelled = found.labelled or table.labelled
        _set_aside_rows(found, table, group, place)
    for name, path in group.pictures.items():
        rows = (Row(0),) if table is None else table.rows.get(name)
        if rows is None:
            if table is not None and name not in table.rejected:
                found.rejected.append(reject(place + name, "missing-row"))
            continue
        try:
            case = _read_case(path, group.mask_of(name), settings)
        except Unusable as unusable:
            found.rejected.append(Rejected(place + name, unusable.kind, str(unusable)))
            continue
        except Exception as error:  # whatever else a picture does, it does to nobody else's
            _log.debug("%s: %r", name, error)
            found.rejected.append(reject(place + name, "file-unreadable", what=type(error).__name__))
            continue
        case = replace(case, name=group.inside + name, site=group.site)
        found.cases += [replace(case, patient=row.patient or case.patient, split=row.split) for row in rows]
        found.rows += rows
    known = {Path(name).with_suffix("") for name in group.pictures}
    for name in group.masks:
        if Path(name).with_suffix("") not in known:
            found.rejected.append(reject(f"{group.site}/masks/{name}", "mask-without-picture"))


def _set_aside_rows(found: Found, table: Table, group: _Group, place: str) -> None:
    for bad in table.rejected.values():
        found.rejected.append(replace(bad, file=place + bad.file))
    for name, rows in table.rows.items():
        if name not in group.pictures:
            found.rejected.append(reject(place + name, "row-without-file", line=rows[0].line))


def _read_case(path: Path, mask_path: Path | None, settings: DataSettings) -> Case:
    size = (settings.size[0], settings.size[1])
    grey, patient = read_grey(path)
    mask = None
    if mask_path is not None:
        full = _read_mask(mask_path, (grey.shape[0], grey.shape[1]), settings.mask_classes)
        mask = resize_mask(full, size, settings.fit, len(settings.mask_classes))
    return Case(resize(grey, size, settings.fit), path.name, mask=mask, patient=patient)


def _read_mask(path: Path, size: tuple[int, int], mask_classes: Sequence[str]) -> MaskArray:
    try:
        pixels = read_pixels(path)
    except Unusable:
        raise Unusable("mask-unreadable", mask=path.name) from None
    if pixels.shape[:2] != size:
        got, expected = (f"{shape[0]}x{shape[1]}" for shape in (pixels.shape, size))
        raise Unusable("mask-size", got=got, expected=expected)
    return mask_values(pixels, len(mask_classes))


def mask_values_seen(root: Path, most: int = 20) -> set[int]:
    """The values in the first masks of a site or of each site of a folder; bad masks say nothing."""
    values: set[int] = set()
    for folder in (root, *sorted(child for child in root.iterdir() if is_site(child))):
        for path in list(_files(folder / "masks").values())[:most]:
            with suppress(Unusable):
                values |= {int(value) for value in np.unique(read_pixels(path))}
    return values


def write_table(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write labels.csv, one line a row, the columns of the first; bytes of a name that are no text as \\udcXX."""
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else ["filename"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
