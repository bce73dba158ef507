"""A MedMNIST-style npz: train_images, train_labels and the like for val and test; masks and patients if given."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmedgen.data.cases import Case, Rejected
from fedmedgen.data.folders import Found
from fedmedgen.data.pixels import check_size, mask_values, resize, resize_mask, to_grey
from fedmedgen.data.rejection import Unusable, reject
from fedmedgen.data.tables import SPLITS, Row
from fedmedgen.settings import DataSettings

_log = logging.getLogger(__name__)
Arrays = Mapping[str, NDArray[Any]]


def read_npz(path: Path, site: str, settings: DataSettings) -> Found:
    """All usable cases of the archive; arrays `*_masks` and `*_patients` go with `*_images`, `classes` names labels."""
    found = Found(labelled=True)
    try:
        arrays = _arrays(path)
        splits = [split for split in SPLITS if f"{split}_images" in arrays or f"{split}_labels" in arrays]
        if not any(f"{split}_images" in arrays for split in splits):
            raise Unusable("npz-keys", got=", ".join(sorted(arrays)) or "nothing")
    except Unusable as unusable:
        found.rejected.append(Rejected(path.name, unusable.kind, str(unusable)))
        return found
    names = [str(name) for name in arrays["classes"]] if "classes" in arrays else []
    for split in splits:
        try:
            part = _split(arrays, split)
        except Unusable as unusable:
            found.rejected.append(Rejected(f"{path.name}:{split}", unusable.kind, str(unusable)))
            continue
        _read_split(found, part, f"{path.name}:{split}", (site, names), settings)
    return found


@dataclass(frozen=True)
class _Split:
    """The arrays of one split, of equal length."""

    name: str
    images: NDArray[Any]
    labels: NDArray[Any]
    masks: NDArray[Any] | None
    patients: NDArray[Any] | None


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    if path.stat().st_size == 0:
        raise Unusable("empty-file")
    arrays: dict[str, NDArray[Any]] = {}
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            for name in archive.files:
                try:
                    arrays[name] = archive[name]
                except ValueError:
                    raise Unusable("npz-objects", name=name) from None
    except Unusable:
        raise
    except Exception as error:  # a broken archive raises whatever its parsers trip over
        _log.debug("%s: %r", path.name, error)
        raise Unusable("npz-unreadable") from None
    return arrays


def _split(arrays: Arrays, split: str) -> _Split:
    images, labels = arrays.get(f"{split}_images"), arrays.get(f"{split}_labels")
    if images is None or labels is None:
        raise Unusable("npz-half", split=split)
    if not (images.ndim == 3 or (images.ndim == 4 and images.shape[3] in (1, 3, 4))) or images.dtype.kind not in "uifb":
        raise Unusable("npz-shape", name=f"{split}_images", got=images.shape, expected="[N, H, W] or [N, H, W, 3]")
    check_size(*images.shape[1:3])
    if labels.ndim == 2 and labels.shape[1] > 1:
        raise Unusable("npz-several-labels", name=f"{split}_labels", got=labels.shape[1])
    if labels.ndim not in (1, 2):
        raise Unusable("npz-shape", name=f"{split}_labels", got=labels.shape, expected="[N] or [N, 1]")
    masks, patients = arrays.get(f"{split}_masks"), arrays.get(f"{split}_patients")
    for what, values in (("labels", labels), ("masks", masks), ("patients", patients)):
        if values is not None and len(values) != len(images):
            raise Unusable("npz-length", split=split, images=len(images), other=len(values), what=what)
    if masks is not None and masks.shape != images.shape[:3]:
        raise Unusable("npz-shape", name=f"{split}_masks", got=masks.shape, expected=f"{images.shape[:3]}")
    return _Split(split, images, labels.reshape(len(images)), masks, patients)


def _read_split(found: Found, part: _Split, place: str, origin: tuple[str, list[str]], settings: DataSettings) -> None:
    site, names = origin
    for index in range(len(part.images)):
        file = f"{place}[{index}]"
        try:
            row = _row(part, index, names)
            image, mask = _pixels(part, index, settings)
        except Unusable as unusable:
            found.rejected.append(Rejected(file, unusable.kind, str(unusable)))
            continue
        if part.patients is not None and row.patient is None:
            found.rejected.append(reject(file, "missing-patient"))
            continue
        name = f"{part.name}-{index:06d}"
        found.cases.append(Case(image, name, mask=mask, patient=row.patient, site=site, split=part.name))
        found.rows.append(row)


def _row(part: _Split, index: int, names: list[str]) -> Row:
    label = part.labels[index]
    whole = part.labels.dtype.kind in "uifb" and np.isfinite(label) and label >= 0 and label == int(label)
    if not whole:
        raise Unusable("npz-label", index=index, got=label)
    number = int(label)
    patient = None if part.patients is None else _patient(part.patients[index])
    return Row(index, number, names[number] if number < len(names) else None, patient, part.name)


def _patient(name: Any) -> str | None:
    """A patient's name; None where it is empty, or a number that is none."""
    missing = isinstance(name, np.floating) and not np.isfinite(name)
    return None if missing else str(name) or None


def _pixels(part: _Split, index: int, settings: DataSettings) -> tuple[Any, Any]:
    size = (settings.size[0], settings.size[1])
    image = resize(to_grey(part.images[index]), size, settings.fit)
    if part.masks is None or not settings.mask_classes:
        return image, None
    count = len(settings.mask_classes)
    return image, resize_mask(mask_values(part.masks[index], count), size, settings.fit, count)
