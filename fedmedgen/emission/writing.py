"""Synthetic sets on disk, in the layouts that real sets are read from: every tool that reads one reads the other."""

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from fedmedgen.data.cases import Case, CaseSet, FloatArray, MaskArray
from fedmedgen.emission.secondary_capture import Origin, save, secondary_capture
from fedmedgen.errors import SettingsError

Format = Literal["png", "npz", "dicom"]


def write_set(cases: CaseSet, folder: Path, *, format: Format = "png", datasheet: Mapping[str, object]) -> None:
    """Write the cases to `folder`, with datasheet.json.

    png: images/*.png, masks/*.png (value x 255 / (M - 1), so 0 and 255 for two classes) and labels.csv.
    dicom: the same with images/*.dcm, and each mask also as segmentations/*.dcm; the datasheet's study, seed,
    generator, body_part and public_masks stand in the files. npz: set.npz with train_images, train_labels, classes and,
    with plain values, train_masks.

    **Raises** `SettingsError` for a case without a label in an npz, which has no way to say so.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if format == "npz":
        _write_npz(cases, folder / "set.npz")
    else:
        _write_folder(cases, folder, Origin.of(datasheet) if format == "dicom" else None)
    sheet = {"cases": len(cases), "classes": cases.classes, "mask_classes": cases.mask_classes, **datasheet}
    (folder / "datasheet.json").write_text(json.dumps(sheet, indent=2, default=str) + "\n")


def grey(image: FloatArray) -> MaskArray:
    """Grey levels ``[H, W]`` uint8 of an image ``[1, H, W]`` in [-1, 1]."""
    levels: MaskArray = np.rint((np.clip(image[0], -1, 1) + 1) * 127.5).astype(np.uint8)
    return levels


def _write_folder(cases: CaseSet, folder: Path, origin: Origin | None) -> None:
    """Pictures as DICOM that tell their origin, or, without one, as png; masks; the table of labels."""
    (folder / "images").mkdir(exist_ok=True)
    with (folder / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        labels = ["label", "label_name"] if any(case.label is not None for case in cases) else []
        table.writerow(["filename", *labels, "split"])
        for case in cases:
            name = Path(case.name).with_suffix(".png" if origin is None else ".dcm").name
            if origin is None:
                _write_png(grey(case.image), folder / "images" / name)
            else:
                _write_dicom(case, cases, folder, origin)
            _write_mask(case, cases, folder)
            label = [case.label, "" if case.label is None else cases.classes[case.label]] if labels else []
            table.writerow([name, *label, "train"])


def _write_dicom(case: Case, cases: CaseSet, folder: Path, origin: Origin) -> None:
    """images/NAME.dcm and, of a case with a mask, segmentations/NAME.dcm."""
    from fedmedgen.emission.segmentation_object import segmentation_object

    path = folder / "images" / Path(case.name).with_suffix(".dcm").name
    class_name = "" if case.label is None else cases.classes[case.label]
    picture = secondary_capture(grey(case.image), path.stem, label=case.label, class_name=class_name, origin=origin)
    save(picture, path)
    if case.mask is not None and len(cases.mask_classes) > 1:
        (folder / "segmentations").mkdir(exist_ok=True)
        save(segmentation_object(case.mask, picture, cases.mask_classes, origin), folder / "segmentations" / path.name)


def _write_mask(case: Case, cases: CaseSet, folder: Path) -> None:
    if case.mask is not None and cases.mask_classes:
        (folder / "masks").mkdir(exist_ok=True)
        levels = np.linspace(0, 255, len(cases.mask_classes)).round().astype(np.uint8)
        _write_png(levels[case.mask], folder / "masks" / Path(case.name).with_suffix(".png").name)


def _write_png(pixels: MaskArray, path: Path) -> None:
    Image.fromarray(pixels, "L").save(path)


def _write_npz(cases: CaseSet, path: Path) -> None:
    labels = [case.label for case in cases if case.label is not None]
    if len(labels) < len(cases):
        raise SettingsError("an npz needs a label for every case; got cases without one: use format png")
    arrays = {
        "train_images": np.stack([grey(case.image) for case in cases]),
        "train_labels": np.array(labels, np.int64)[:, None],
        "classes": np.array(cases.classes),
    }
    masks = [case.mask for case in cases if case.mask is not None]
    if masks and len(masks) == len(cases):
        arrays["train_masks"] = np.stack(masks)
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
