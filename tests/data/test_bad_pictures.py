"""Each kind of bad picture and mask, made for real: set aside with the words of docs/bad-input.md."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedmedgen.data import dicom
from fedmedgen.data.pictures import read_grey
from fedmedgen.data.rejection import KINDS, Unusable

GREY = np.arange(20 * 24, dtype=np.uint8).reshape(20, 24)


def empty_file(images: Path) -> None:
    """a file of 0 bytes"""
    (images / "b.png").write_bytes(b"")


def not_a_picture(images: Path) -> None:
    """a text file called .png"""
    (images / "b.png").write_text("hello, I am a radiograph")


def truncated_picture(images: Path) -> None:
    """the first half of a PNG"""
    content = (images / "b.png").read_bytes()
    (images / "b.png").write_bytes(content[: len(content) // 2])


def picture_too_small(images: Path) -> None:
    """a picture of 4x24 pixels"""
    Image.fromarray(GREY[:4]).save(images / "b.png")


def picture_too_large(images: Path) -> None:
    """a picture of 12000x12000 pixels"""
    Image.new("1", (12000, 12000)).save(images / "b.png")


def file_unreadable(images: Path) -> None:
    """a file that nobody may read"""
    (images / "b.png").chmod(0)


def picture_flat(images: Path) -> None:
    """an all-black picture"""
    Image.fromarray(np.zeros((20, 24), np.uint8)).save(images / "b.png")


def picture_not_finite(images: Path) -> None:
    """a TIFF of real numbers, one of them NaN"""
    values = GREY.astype(np.float32)
    values[3, 3] = np.nan
    Image.fromarray(values).save(images / "b.png", format="TIFF")


def deep_colour(images: Path) -> None:
    """a PNG of 16 bits a channel, in colour"""
    save_png(images / "b.png", np.stack([GREY.astype(np.uint16) * 8] * 3, -1))


def save_png(path: Path, pixels: np.ndarray) -> None:
    """16 bits a channel, ``[H, W, C]``: grey, grey and alpha, colour, colour and alpha. Pillow can't write them."""
    height, width, channels = pixels.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in pixels)
    parts = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0),
        b"IDAT": zlib.compress(lines),
        b"IEND": b"",
    }
    content = b"".join(
        struct.pack(">I", len(part)) + name + part + struct.pack(">I", zlib.crc32(name + part))
        for name, part in parts.items()
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)


def several_frames(images: Path) -> None:
    """a TIFF of 3 pages"""
    page = Image.fromarray(GREY)
    page.save(images / "b.png", format="TIFF", save_all=True, append_images=[page, page])


def mask_unreadable(images: Path) -> None:
    """a mask that is no picture"""
    (images.parent / "masks" / "b.png").write_text("mask")


def mask_size(images: Path) -> None:
    """a mask of 10x12 pixels for a picture of 20x24"""
    Image.fromarray(np.zeros((10, 12), np.uint8)).save(images.parent / "masks" / "b.png")


def mask_values(images: Path) -> None:
    """a mask with the values 0, 2 and 7 where two classes are set"""
    mask = np.zeros((20, 24), np.uint8)
    mask[:5], mask[5:9] = 2, 7
    Image.fromarray(mask).save(images.parent / "masks" / "b.png")


def mask_without_picture(images: Path) -> None:
    """a mask whose picture isn't there"""
    (images.parent / "masks" / "b.png").rename(images.parent / "masks" / "stray.png")


def folder_without_images(images: Path) -> None:
    """beside the sites a folder `south` whose pictures are in `image/`"""
    (images.parents[1] / "south" / "image").mkdir(parents=True)


MAKERS = {
    make.__name__.replace("_", "-"): make
    for make in (
        empty_file,
        not_a_picture,
        truncated_picture,
        picture_too_small,
        picture_too_large,
        file_unreadable,
        picture_flat,
        picture_not_finite,
        deep_colour,
        several_frames,
        mask_unreadable,
        mask_size,
        mask_values,
        mask_without_picture,
        folder_without_images,
    )
}
NO_PICTURE_LOST = ("mask-without-picture", "folder-without-images")


@pytest.fixture
def modes_count_for_root(monkeypatch):
    """Whoever runs the tests meets files as an ordinary user does."""
    plain = dicom.is_dicom

    def is_dicom(path):
        if path.stat().st_mode & 0o444 == 0:
            raise PermissionError(13, "Permission denied")
        return plain(path)

    monkeypatch.setattr(dicom, "is_dicom", is_dicom)


@pytest.mark.parametrize("kind", MAKERS)
def test_a_bad_picture_is_set_aside_in_the_documented_words(kind, site, scan_site, documented, modes_count_for_root):
    MAKERS[kind](site / "images")
    cases = scan_site()
    found = [(bad.kind, (MAKERS[kind].__doc__, bad.reason)) for bad in cases.rejected]
    assert found == [(kind, documented["Pictures and masks"][kind])]
    assert len(cases) == (4 if kind in NO_PICTURE_LOST else 3)


def test_every_documented_kind_of_bad_picture_is_made_here(documented):
    assert set(documented["Pictures and masks"]) == set(MAKERS)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_deep_picture_is_read_at_its_depth_or_set_aside(tmp_path, channels):
    ramp = np.linspace(0, 4095, 32 * 32).reshape(32, 32, 1).astype(np.uint16)
    save_png(tmp_path / "deep.png", np.repeat(ramp, channels, axis=2))
    if channels == 1:
        assert len(np.unique(read_grey(tmp_path / "deep.png")[0])) > 1000
        return
    with pytest.raises(Unusable, match="16 bits a channel"):
        read_grey(tmp_path / "deep.png")


@pytest.mark.parametrize("kind", [np.uint16, np.float32])
def test_a_deep_tiff_whose_zero_is_white_is_turned(tmp_path, kind):
    ramp = np.linspace(0, 200, 32 * 32).reshape(32, 32).astype(kind)
    for name, photometric in (("black", 1), ("white", 0)):
        Image.fromarray(ramp).save(tmp_path / f"{name}.tif", tiffinfo={262: photometric})
    written = Image.open(tmp_path / "white.tif")
    assert written.tag_v2[262] == 0
    black, white = (read_grey(tmp_path / f"{name}.tif")[0] for name in ("black", "white"))
    assert black[0, 0] < black[-1, -1]
    assert white[0, 0] > white[-1, -1]


@pytest.mark.parametrize("suffix", ["png", "jpg", "tiff", "bmp"])
def test_no_damage_to_a_picture_stops_the_program(tmp_path, suffix):
    rng = np.random.default_rng(0)
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(GREY).save(path)
    whole = path.read_bytes()
    outcomes = set()
    for _ in range(150):
        content = bytearray(whole)
        for place in rng.integers(0, min(len(content), 400), 3):
            content[place] = rng.integers(0, 256)
        path.write_bytes(bytes(content[: rng.integers(1, len(content) + 1)]))
        try:
            outcomes.add(read_grey(path)[0].ndim)
        except Unusable as unusable:
            outcomes.add(unusable.kind)
    assert outcomes <= {2, *KINDS}
    assert outcomes & {"not-a-picture", "truncated-picture"}
