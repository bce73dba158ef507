"""Each kind of bad npz, made for real: set aside with the words of docs/bad-input.md."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedmedgen.data import sources
from fedmedgen.settings import DataSettings

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 12, 12)).astype(np.uint8)
LABELS = np.array([[0], [1], [0], [1]], np.uint8)


def _save(path: Path, **changes: Any) -> None:
    arrays = {
        "train_images": IMAGES,
        "train_labels": LABELS,
        "test_images": IMAGES,
        "test_labels": LABELS,
        **changes,
    }
    np.savez(path, **{name: values for name, values in arrays.items() if values is not None})


def npz_unreadable(path: Path) -> None:
    """the first half of an npz"""
    _save(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def npz_objects(path: Path) -> None:
    """labels saved as Python objects"""
    _save(path, train_labels=np.array([0, 1, "one", None], dtype=object))


def npz_keys(path: Path) -> None:
    """arrays called x and y"""
    np.savez(path, x=IMAGES, y=LABELS)


def npz_half(path: Path) -> None:
    """train_images without train_labels"""
    _save(path, train_labels=None)


def npz_shape(path: Path) -> None:
    """images of two colours"""
    _save(path, train_images=np.stack([IMAGES, IMAGES], axis=3))


def npz_length(path: Path) -> None:
    """4 images and 3 labels"""
    _save(path, train_labels=LABELS[:3])


def npz_label(path: Path) -> None:
    """a label of -1"""
    _save(path, train_labels=np.array([0, -1, 0, 1]))


def npz_several_labels(path: Path) -> None:
    """14 labels an image, as in ChestMNIST"""
    _save(path, train_labels=np.zeros((4, 14), np.uint8))


MAKERS = {
    make.__name__.replace("_", "-"): make
    for make in (
        npz_unreadable,
        npz_objects,
        npz_keys,
        npz_half,
        npz_shape,
        npz_length,
        npz_label,
        npz_several_labels,
    )
}
LEFT = {"npz-unreadable": 0, "npz-objects": 0, "npz-keys": 0, "npz-label": 7}


@pytest.mark.parametrize("kind", MAKERS)
def test_a_bad_archive_is_set_aside_in_the_documented_words(kind, tmp_path, documented):
    path = tmp_path / "set.npz"
    MAKERS[kind](path)
    cases = sources.scan(DataSettings(root=str(path), size=(12, 12)), seed=0)
    found = [(bad.kind, (MAKERS[kind].__doc__, bad.reason)) for bad in cases.rejected]
    assert found == [(kind, documented["npz"][kind])]
    assert len(cases) == LEFT.get(kind, 4)


def test_every_documented_kind_of_bad_archive_is_made_here(documented):
    assert set(documented["npz"]) == set(MAKERS)


@pytest.mark.parametrize("position", range(0, 2400, 97))
def test_no_flipped_byte_of_an_archive_stops_the_program(tmp_path, position):
    path = tmp_path / "set.npz"
    _save(path)
    content = bytearray(path.read_bytes())
    content[position % len(content)] ^= 0xFF
    path.write_bytes(bytes(content))
    cases = sources.scan(DataSettings(root=str(path), size=(12, 12)), seed=0)
    assert len(cases) in (0, 4, 8) or cases.rejected
