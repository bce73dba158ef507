"""Depth, colour and size: what pixels become on their way to the study's grey."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fedmedgen.data.pictures import read_grey, read_pixels
from fedmedgen.data.pixels import mask_values, resize, resize_mask, to_grey
from fedmedgen.data.rejection import Unusable

RAMP = np.tile(np.linspace(0, 255, 64).round().astype(np.uint8), (48, 1))


def test_eight_bits_keep_their_full_range():
    grey = to_grey(np.array([[0, 255], [51, 204]], np.uint8))
    assert np.allclose(grey, [[-1, 1], [-0.6, 0.6]])


def test_twelve_bits_in_a_sixteen_bit_file_are_as_bright_as_eight(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / "eight.png")
    Image.fromarray(RAMP.astype(np.uint16) * 16).save(tmp_path / "twelve.png")
    eight, twelve = (read_grey(tmp_path / f"{name}.png")[0] for name in ("eight", "twelve"))
    assert np.abs(eight - twelve).max() < 0.03


def test_a_hot_pixel_does_not_blacken_a_deep_picture():
    deep = RAMP.astype(np.uint16)
    deep[0, 0] = 65535
    assert np.abs(to_grey(deep)[1:] - to_grey(RAMP)[1:]).max() < 0.05


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "CMYK"])
def test_colour_pictures_of_grey_are_grey(tmp_path, mode):
    path = tmp_path / ("x.tiff" if mode == "CMYK" else "x.png")
    Image.fromarray(RAMP).convert("RGB" if mode == "CMYK" else "L").convert(mode).save(path)
    grey, patient = read_grey(path)
    assert np.abs(grey - to_grey(RAMP)).max() < 0.02
    assert patient is None


def test_padding_keeps_the_aspect_and_squashing_fills_the_frame():
    wide = np.ones((20, 40), np.float32)
    padded, squashed = (resize(wide, (32, 32), fit)[0] for fit in ("pad", "squash"))
    assert np.array_equal(padded[8:24], np.ones((16, 32)))
    assert np.array_equal(padded[:8], -np.ones((8, 32)))
    assert np.array_equal(squashed, np.ones((32, 32)))


def test_a_picture_of_the_right_size_is_untouched():
    picture = np.random.default_rng(0).uniform(-1, 1, (16, 24)).astype(np.float32)
    assert np.array_equal(resize(picture, (16, 24), "pad")[0], picture)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(16, 90), st.integers(16, 90), st.sampled_from(["pad", "squash"]))
def test_each_structure_keeps_its_area_and_none_is_lost(seed, height, width, fit):
    rng = np.random.default_rng(seed)
    mask = np.zeros((height, width), np.uint8)
    top, left = rng.integers(0, height - 4), rng.integers(0, width - 4)
    mask[top : top + rng.integers(1, 9), left : left + rng.integers(1, 9)] = 1
    small = resize_mask(mask, (16, 16), fit, 2)
    longest = max(height, width) if fit == "pad" else 0
    inner = [round(side * 16 / longest) if longest else 16 for side in (height, width)]
    expected = mask.sum() * inner[0] * inner[1] / (height * width)
    assert small.sum() >= 1
    assert abs(small.sum() - max(1, expected)) <= 0.5 + 0.02 * expected


def test_a_tiny_lesion_inside_an_organ_survives_shrinking():
    mask = np.zeros((256, 256), np.uint8)
    mask[60:200, 60:200] = 1
    mask[100:102, 100:102] = 2
    small = resize_mask(mask, (32, 32), "pad", 3)
    assert (small == 2).sum() == 1
    assert small[12, 12] == 2


@pytest.mark.parametrize(
    ("stored", "count", "expected"),
    [
        ([0, 255], 2, [0, 1]),
        ([0, 1], 2, [0, 1]),
        ([0, 90, 200, 255], 2, [0, 0, 1, 1]),
        ([0, 128, 255], 3, [0, 1, 2]),
        ([0, 1, 2], 3, [0, 1, 2]),
        ([0, 0], 2, [0, 0]),
        ([0, 85, 170, 255], 4, [0, 1, 2, 3]),
    ],
)
def test_mask_files_may_hold_class_numbers_or_spread_values(stored, count, expected):
    assert mask_values(np.array([stored], np.uint8), count).tolist() == [expected]


@pytest.mark.parametrize(("stored", "count"), [([0, 1, 2], 2), ([0, 100, 255], 3), ([0, 300], 2)])
def test_other_mask_values_are_refused(stored, count):
    with pytest.raises(Unusable, match="its mask holds"):
        mask_values(np.array([stored], np.uint16), count)


def test_a_picture_that_asks_to_be_turned_is_read_as_viewers_show_it(tmp_path):
    grey = np.arange(0, 192, 2, dtype=np.uint8).reshape(8, 12)
    turned = Image.Exif()
    turned[0x0112] = 6  # a quarter to the right
    Image.fromarray(grey).save(tmp_path / "a.png", exif=turned)
    np.testing.assert_array_equal(read_pixels(tmp_path / "a.png"), np.rot90(grey, -1))
