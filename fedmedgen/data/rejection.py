"""The kinds of bad input that a loader sets aside, and the words for each.

docs/bad-input.md shows every kind with an example.
"""

from fedmedgen.data.cases import Rejected

KINDS: dict[str, str] = {
    # pictures
    "empty-file": "the file is empty (0 bytes): copy it again",
    "not-a-picture": "not a picture that can be read here (PNG, JPEG, TIFF, BMP, DICOM): remove it or convert it",
    "truncated-picture": "the picture breaks off before its last row: copy it again",
    "picture-too-small": "expected at least {least} pixels a side, got {height}x{width}: export it at full size",
    "picture-too-large": "expected at most {most} million pixels, got {height}x{width}: export it smaller",
    "file-unreadable": "the file can't be opened ({what}): give this program leave to read it, or copy it again",
    "picture-flat": "every pixel has the same value, so nothing is to be seen: remove it",
    "picture-not-finite": "some pixels are not finite numbers: export it again as whole numbers",
    "mask-not-written": "its mask can't be written ({what}): give the picture another name",
    "deep-colour": "16 bits a channel in mode {mode}, of which 8 would be lost: export it as plain grey of 16 bits",
    "several-frames": "expected one picture, got {frames} frames: export each as a file of its own",
    "mask-unreadable": "its mask {mask} can't be read as a picture: export the mask again or remove it",
    "mask-size": "its mask is {got} but the picture is {expected}: export the mask at the picture's size",
    "mask-values": "its mask holds {got}; expected {expected}: renumber the mask or correct data.mask_classes",
    "mask-without-picture": "no picture in images/ has this mask's name: rename it or remove it",
    "folder-without-images": "a folder beside the sites without images/ in it: rename its folder of pictures to images",
    # labels.csv
    "table-unreadable": "not comma-separated text in UTF-8, so the site is left out: save it again as UTF-8",
    "table-empty": "no header line, so the site is left out: write a header and a line for each picture",
    "table-columns": "expected a column {expected!r}, got {got}; the site is left out: rename the column or set "
    "data.columns.filename",
    "row-unreadable": "line {line} can't be read: close its quotes, keep it on one line, save the file as UTF-8",
    "row-length": "line {line} has {got} cells where the header has {expected}: quote cells that hold commas",
    "row-without-file": "line {line} names a picture that isn't there: correct the name or remove the line",
    "row-outside": "line {line} names a file outside the site's folder: use names below images/",
    "duplicate-name": "listed {count} times (lines {lines}), so what it shows is in doubt: keep one line",
    "missing-row": "the picture has no line in labels.csv: add one",
    "missing-label": "line {line} has neither a label nor a label name: fill one in",
    "label-not-a-number": "line {line}: expected a whole number from 0 as label, got {got!r}: correct it or name it",
    "label-conflict": "line {line} calls label {label} {got!r}, an earlier line {expected!r}: make them agree",
    "unknown-class": "class {got!r} is not among data.classes ({expected}): correct the label or add the class",
    "missing-patient": "no patient is named though others of the site are: fill in the patient",
    "unknown-split": "line {line}: expected train, val or test as split, got {got!r}: correct it",
    # DICOM
    "dicom-unreadable": "the DICOM header is broken or breaks off: export the file again",
    "dicom-without-picture": "a DICOM object without pixels ({what}): remove it",
    "dicom-modality": "an image of modality {got}; expected a radiograph ({expected}): remove it",
    "dicom-colour": "photometric interpretation {got!r}, expected MONOCHROME1, MONOCHROME2 or RGB: export it as grey",
    "dicom-attribute": "the attribute {name} is missing or has no usable value: export the file again",
    "dicom-pixels": "the pixels can't be decoded ({syntax}): export it uncompressed or as JPEG 2000",
    "dicom-truncated": "expected {expected} bytes of pixels, got {got}: copy it again",
    # npz
    "npz-unreadable": "not a whole npz archive: download or save it again",
    "npz-objects": "array {name} holds Python objects, which are never loaded: save plain numbers",
    "npz-keys": "expected train_images and train_labels (and val_, test_), got {got}: rename the arrays",
    "npz-half": "split {split} has images without labels or labels without images, so it is left out: add the other",
    "npz-shape": "array {name} has shape {got}; expected {expected}, so the split is left out: reshape it",
    "npz-length": "split {split} has {images} images but {other} {what}, so it is left out: save them together",
    "npz-label": "label {got} of image {index} is not a whole number from 0: correct it",
    "npz-several-labels": "array {name} gives each image {got} labels; expected one: choose one column",
}


class Unusable(Exception):  # noqa: N818  caught inside the data room, never shown as an error
    """What is wrong with one file; loaders turn it into a `Rejected`."""

    def __init__(self, kind: str, **facts: object) -> None:
        self.kind = kind
        super().__init__(KINDS[kind].format(**facts))


def reject(file: str, kind: str, **facts: object) -> Rejected:
    """A file set aside for a kind of reason, with the facts that its sentence names."""
    return Rejected(file, kind, KINDS[kind].format(**facts))
