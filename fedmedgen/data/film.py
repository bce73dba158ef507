"""What the machine does to a phantom: texture, blur, exposure, contrast and grain."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from fedmedgen.data.cases import FloatArray

Field = NDArray[np.floating[Any]]  # a picture's or a batch's worth of real numbers


@dataclass(frozen=True, kw_only=True)
class PhantomStyle:
    """A site's machine and its people; lengths in half-widths of the picture."""

    name: str
    exposure: float = 0.0  # added to the brightness
    contrast: float = 1.0
    toe: float = 0.25  # bend of the film's curve
    blur: float = 0.014  # standard deviation
    noise: float = 0.018  # standard deviation at mean brightness
    habitus: float = 0.0  # -1 slender .. 1 heavy
    marker: float = 0.5  # share of films with a side marker


def ramp(distance: Field, slope: float) -> Field:
    """Soft step, in place: 0 outside, 1 inside, 0.5 on the edge."""
    distance *= slope
    distance += 0.5
    return np.clip(distance, 0.0, 1.0, out=distance)


def bell(offset: Field, width: Field | float) -> Field:
    """Gaussian of height 1."""
    scaled = offset / width
    return np.exp(-0.5 * scaled * scaled).astype(np.float32, copy=False)


def tile(rng: np.random.Generator, size: tuple[int, int], coarse: float, fine: float) -> FloatArray:
    """Periodic noise of unit variance over two by two pictures, with scales from `coarse` to `fine` (of a picture).

    **Shapes** ``[3H, 3W]``: the period is ``[2H, 2W]``, so that any crop of one picture lies inside.
    """
    height, width = 2 * size[0], 2 * size[1]
    rows, columns = np.fft.fftfreq(height, 1 / height)[:, None] / 2, np.fft.rfftfreq(width, 1 / width)[None] / 2
    cycles = np.hypot(rows, columns)
    band = np.exp(-((cycles * fine) ** 2)) * (1 - np.exp(-((cycles * coarse) ** 2))) / np.maximum(cycles, 0.5)
    noise = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((height, width))) * band, s=(height, width))
    noise /= noise.std()
    return np.pad(noise, ((0, size[0]), (0, size[1])), mode="wrap").astype(np.float32)


def crops(source: Field, offsets: Field, size: tuple[int, int]) -> FloatArray:
    """One picture-sized piece of a tile for each pair of offsets in [0, 1); odd ones are mirrored. ``[B, H, W]``"""
    height, width = size
    out = np.empty((len(offsets), height, width), np.float32)
    for number, (down, right) in enumerate(offsets):
        top, left = int(down * 2 * height), int(right * 2 * width)
        piece = source[top : top + height, left : left + width]
        out[number] = piece[:, ::-1] if number % 2 else piece
    return out


def expose(thickness: Field, style: PhantomStyle, gain: Field, rng: np.random.Generator) -> FloatArray:
    """Turn attenuation in about [0, 1] into pixels in [-1, 1].

    **Shapes** thickness ``[B, H, W]``, changed in place; gain ``[B, 1, 1]`` (exposure of the single film).
    """
    deviation = max(style.blur, 0.25 / max(thickness.shape[1:])) * thickness.shape[1] / 2
    film = gaussian_filter(thickness, (0, deviation, deviation), truncate=2.5)
    film -= 0.5
    film *= style.contrast
    film += 0.5 + style.exposure + gain
    np.clip(film, 0.0, 1.0, out=film)
    film *= 1 + style.toe * (1 - film)
    grain = rng.standard_normal(film.shape, np.float32)
    grain *= 1.3 - 0.6 * film
    film += style.noise * grain
    film *= 2
    film -= 1
    bright: FloatArray = np.clip(film, -1.0, 1.0).astype(np.float32, copy=False)
    return bright


def stamp(picture: Field, shown: Sequence[int], corner: tuple[float, float]) -> None:
    """Put the marker of the left side, an L of lead, on the films in `shown`; its corner in shares of the sides."""
    height, width = picture.shape[1:]
    top, left = int(corner[0] * height), int(corner[1] * width)
    thick, tall = max(1, round(height / 64)), max(3, round(height / 14))
    for number in shown:
        picture[number, top : top + tall, left : left + thick] = 0.95
        picture[number, top + tall - thick : top + tall, left : left + max(2, tall // 2 + 1)] = 0.95
