"""A panoramic dental radiograph drawn from a few anatomical numbers: two rows of teeth, jaws, sinuses, spine, caries.

x runs from -1 (the patient's right, left in the picture) to 1, y from -1 (top) to 1. Brightness runs from 0 (air) to
1 (enamel, metal). Distances inside teeth are measured from the biting edge towards the root.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fedmedgen.data.cases import MaskArray
from fedmedgen.data.film import Field, bell, crops, ramp, stamp, tile

CLASSES = ("normal", "caries")
MASK_CLASSES = ("background", "tooth", "caries")
MIX = {"normal": 0.5, "caries": 0.5}

Numbers = Mapping[str, Field]

_TEETH = 16  # of a jaw, from the patient's right to the left
BODY: dict[str, tuple[float, ...]] = {  # one draw a patient; a third number: that many draws
    "bite": (-0.06, 0.08),
    "smile": (0.15, 0.50),
    "crowding": (0.94, 1.10),
    "chin": (0.70, 0.84),
    "jaw_width": (0.70, 0.82),
    "jaw_light": (-0.04, 0.06),
    "sinus": (0.5, 1.2),
    "palate": (-0.44, -0.34),
    "upper_length": (-1.0, 1.0, _TEETH),
    "lower_length": (-1.0, 1.0, _TEETH),
    "upper_tilt": (-0.5, 0.5, _TEETH),
    "lower_tilt": (-0.5, 0.5, _TEETH),
    "upper_there": (0.0, 1.0, _TEETH),
    "lower_there": (0.0, 1.0, _TEETH),
    "upper_metal": (0.0, 1.0, _TEETH),
    "lower_metal": (0.0, 1.0, _TEETH),
}
POSE: dict[str, tuple[float, ...]] = {  # one draw a film
    "x": (-0.04, 0.04),
    "y": (-0.05, 0.05),
    "zoom": (0.94, 1.08),
    "tilt": (-0.04, 0.04),
    "gape": (0.012, 0.055),
    "spine": (0.5, 1.3),
    "gain": (-0.04, 0.04),
    "spots": (0.0, 1.0, 12),
    "texture_y": (0.0, 1.0),
    "texture_x": (0.0, 1.0),
    "marker": (0.0, 1.0),
}
_DENSITY, _BEND = 20.0, 8.3  # teeth from the middle to x: _DENSITY x - _BEND x^2
_GONE, _WISDOM_GONE, _METAL = 0.05, 0.45, 0.10


class Textures:
    """Tiles of noise that the films of one drawing share."""

    def __init__(self, size: tuple[int, int], rng: np.random.Generator) -> None:
        self.size = size
        self.bone = tile(rng, size, 0.12, 0.012)
        self.cloud = tile(rng, size, 0.9, 0.09)


class Frame(NamedTuple):
    """Positions in the head: columns ``[B, 1, W]``, rows ``[B, H, 1]``, below the bite ``[B, H, W]``; edges' slope."""

    column: Field
    row: Field
    below: Field
    slope: float
    aspect: float  # pixels a unit of x over pixels a unit of y


def render(numbers: Numbers, kinds: Sequence[str], textures: Textures, habitus: float) -> tuple[Field, MaskArray]:
    """Attenuation ``[B, H, W]`` and masks ``[B, H, W]`` of films with the given anatomy."""
    n = {name: values[:, None, None] for name, values in numbers.items() if values.ndim == 1}
    frame = _frame(n, textures.size)
    places = np.stack([numbers["texture_y"], numbers["texture_x"]], 1)
    cloud = crops(textures.cloud, places, textures.size)
    picture = _face(n, frame, cloud, habitus)
    _jaw(n, frame, picture, crops(textures.bone, places[:, ::-1], textures.size))
    teeth = np.zeros_like(picture)
    decayed = [number for number, kind in enumerate(kinds) if kind == "caries"]
    spots = {number: _spots(numbers, number) for number in decayed}
    for jaw in ("upper", "lower"):
        whole = {number: [tooth for where, tooth, *_ in found if where == jaw] for number, found in spots.items()}
        teeth = np.maximum(teeth, _row_of_teeth(n, numbers, jaw, frame, picture, whole))
    masks = (teeth > 0.5).astype(np.uint8)
    for number, found in spots.items():
        for spot in found:
            share = _hole(numbers, number, spot, frame) * teeth[number]
            picture[number] -= spot[-1] * share
            masks[number][(share > 0.4) & (masks[number] > 0)] = 2
    stamp(picture, np.flatnonzero(n["marker"][:, 0, 0] > 0).tolist(), (0.84, 0.94))
    return picture, masks


def _frame(n: Numbers, size: tuple[int, int]) -> Frame:
    height, width = size
    across = ((np.arange(width, dtype=np.float32) + 0.5) * (2 / width) - 1)[None, None, :]
    down = ((np.arange(height, dtype=np.float32) + 0.5) * (2 / height) - 1)[None, :, None]
    column, row = (across - n["x"]) / n["zoom"], (down - n["y"]) / n["zoom"]
    below = row - _bite(n, column)
    return Frame(column, row, below, min(height / 2.6, 60.0), width / height)


def _bite(n: Numbers, x: Field) -> Field:
    """The height at which the rows of teeth meet: a smile."""
    return n["bite"] + n["tilt"] * x - n["smile"] * x * x


def _face(n: Numbers, frame: Frame, cloud: Field, habitus: float) -> Field:
    """Everything behind the jaw: soft tissue, skull base, sinuses, nose, palate, spine."""
    far, row = np.abs(frame.column), frame.row
    picture = 0.035 * cloud
    picture += 0.30 + 0.03 * habitus + 0.10 * bell(row + 0.15, 0.5) * bell(far, 0.6)
    picture += (0.30 + 0.12 * cloud) * ramp(-0.72 - row + 0.5 * (far - 0.6), 4.0) * ramp(far - 0.30, 5.0)
    picture -= 0.17 * n["sinus"] * bell(far - 0.30, 0.13) * bell(row + 0.66, 0.17)
    picture -= 0.22 * bell(far - 0.075, 0.045) * bell(row + 0.72, 0.17)
    picture += 0.10 * bell(far, 0.018) * ramp(-0.45 - row, 8.0)
    arch = n["palate"] + 0.25 * far * far - row
    picture += 0.20 * bell(arch, 0.028) * ramp(0.48 - far, 8.0)
    picture += 0.12 * bell(row + 0.80 - 0.35 * (far - 0.3), 0.03) * ramp(0.62 - far, 8.0) * ramp(far - 0.15, 8.0)
    picture -= 0.15 * bell(far - 0.60 - 0.10 * row, 0.05) * bell(row + 0.05, 0.28)
    vertebra = np.abs((row * 2.6 + 0.2) % 1 - 0.5)
    picture += 0.17 * n["spine"] * bell(far - 0.97, 0.08) * (0.5 + 1.4 * vertebra) * ramp(row + 0.5, 4.0)
    picture += 0.26 * n["spine"] * bell(frame.column, 0.13) * ramp(row - 0.45, 1.6)
    return picture


def _jaw(n: Numbers, frame: Frame, picture: Field, bone: Field) -> None:
    """The lower jaw with its ramus, canal and bright rim; the bone that holds the teeth; dark below."""
    far, row = np.abs(frame.column), frame.row
    reach = np.minimum(far / n["jaw_width"], 1.25)
    border = n["chin"] - 0.50 * reach**3 - 0.06 * reach
    inside = border - row
    outside = n["jaw_width"] + 0.05 - 0.09 * row - far
    outside *= frame.aspect
    inside = 0.5 * (inside + outside - np.sqrt((inside - outside) ** 2 + 0.03))
    picture -= 0.16 * ramp(-inside - 0.03, 6.0) * ramp(row + 0.1, 4.0)
    rim = bell(inside - 0.035, 0.024) * (0.35 + 0.65 * ramp(row - 0.1, 3.0)) * ramp(row + 0.60, 6.0)
    body = ramp(inside, frame.slope * 0.8)
    gums = ramp(frame.below + 0.02, 8.0)
    ramus = ramp(far - 0.56 - 0.10 * row, 10.0) * ramp(row + 0.60, 8.0)
    body *= np.maximum(gums, ramus)
    picture += body * (0.09 + n["jaw_light"] + 0.03 * bone)
    picture += 0.20 * rim + 0.13 * bell(far - n["jaw_width"] - 0.07, 0.05) * bell(row + 0.66, 0.08)
    canal = row - (border - 0.24 - 0.5 * np.maximum(far - 0.45, 0))
    picture -= 0.06 * bell(canal, 0.025) * body * ramp(far - 0.22, 10.0)
    upper = ramp(-frame.below + 0.02, 8.0) * ramp(row - n["palate"], 6.0) * ramp(0.56 - far, 8.0)
    picture += upper * (0.06 + 0.03 * bone)


def _row_of_teeth(
    n: Numbers, numbers: Numbers, jaw: str, frame: Frame, picture: Field, whole: Mapping[int, Sequence[int]]
) -> Field:
    """Draw one jaw's teeth and give the share of each pixel that is tooth; teeth in `whole` are not missing."""
    far = np.abs(frame.column[:, 0])
    count = (_DENSITY * far - _BEND * far * far) / n["crowding"][:, 0]
    place = np.clip(np.floor(count), 0, 7).astype(int)
    tooth = np.where(frame.column[:, 0] < 0, 7 - place, 8 + place)

    def of_tooth(name: str) -> Field:
        return np.take_along_axis(numbers[f"{jaw}_{name}"], tooth, 1)[:, None]

    there = numbers[f"{jaw}_there"] > np.where(np.isin(np.arange(_TEETH), (0, 15)), _WISDOM_GONE, _GONE)
    metal = numbers[f"{jaw}_metal"] < _METAL * np.abs(np.arange(_TEETH) - 7.5) / 4
    for number, teeth in whole.items():
        there[number, teeth], metal[number, teeth] = True, False
    shown = np.take_along_axis(there, tooth, 1)[:, None] & (count < 8)[:, None]
    rank = place[:, None].astype(np.float32)
    crown = (0.19 if jaw == "upper" else 0.16) - 0.008 * rank
    length = crown + 0.30 - 0.012 * rank + 0.05 * (rank == 2) + 0.04 * of_tooth("length")
    rows = _rows_of_teeth(jaw, frame)
    depth = (-frame.below[:, rows] if jaw == "upper" else frame.below[:, rows]) - n["gape"] - 0.012 * of_tooth("tilt")
    across = (count - place)[:, None] - 0.5 + of_tooth("tilt") * depth
    np.abs(across, out=across)
    taper = np.clip((depth - crown) / (length - crown), 0, 1)
    edge = 0.455 - 0.085 * np.clip((depth - crown) * 14 + 1, 0, 1) - 0.27 * taper * taper
    edge -= 0.10 * np.clip(1 - depth * 22, 0, 1) + across
    roots = across + 0.12 - 0.22 * np.clip((depth - crown - 0.05) * 12, 0, 1) + 10.0 * (rank < 5)
    np.minimum(edge, roots, out=edge)
    edge *= frame.aspect / (_DENSITY - 2 * _BEND * np.minimum(far, 0.6))[:, None]
    np.minimum(edge, np.minimum(length - depth, depth), out=edge)
    share = ramp(edge, frame.slope) * shown
    band = picture[:, rows]
    band -= 0.16 * ramp(crown - depth, frame.slope * 0.6) * (1 - share) * _mouth(depth, count, frame.slope)
    _shade(share, (depth, across, crown, length), frame.slope, band)
    filled = share * (np.take_along_axis(metal, tooth, 1)[:, None] * ramp(0.6 * crown - depth, frame.slope))
    band += filled * (1.0 - band)
    whole_film = np.zeros_like(picture)
    whole_film[:, rows] = share
    return whole_film


def _rows_of_teeth(jaw: str, frame: Frame) -> slice:
    """The rows of pixels that teeth of a jaw can reach: the rest needs no work."""
    width = frame.column.shape[2]
    middle = frame.below[:, :, width // 6 : width - width // 6]
    reach = middle < 0.02 if jaw == "upper" else middle > -0.02
    rows = np.flatnonzero((reach & (np.abs(middle) < 0.64)).any(axis=(0, 2)))
    return slice(int(rows[0]), int(rows[-1]) + 1)


def _mouth(depth: Field, count: Field, slope: float) -> Field:
    """Where the gaps between crowns are dark: from the biting edge inwards, as far back as there are teeth."""
    return ramp(depth + 0.03, slope) * ramp(8.1 - count, 2.0)[:, None]


def _shade(share: Field, place: tuple[Field, Field, Field, Field], slope: float, picture: Field) -> None:
    """Bright enamel, paler dentine, a dark pulp down the middle."""
    depth, across, crown, length = place
    is_crown = ramp(crown - depth, slope * 0.6)
    pulp = ramp(0.10 - across, 12.0) * np.clip((depth - 0.06) * 10, 0, 1) * np.clip((length - depth) * 6, 0, 1)
    light = 0.61 + 0.18 * is_crown + 0.20 * np.clip(across - 0.25, 0, 1) - 0.12 * pulp
    picture += share * (light - picture)


Spot = tuple[str, int, float, float, float, float]  # jaw, tooth, across the tooth, depth, radius, darkness


def _spots(numbers: Numbers, number: int) -> list[Spot]:
    """One to three carious spots of a film: at the sides and the biting faces of crowns."""
    draws = numbers["spots"][number]
    found: list[Spot] = []
    for start in range(0, 4 * (1 + int(draws[1] * 3)), 4):
        which, share, side, big = (float(value) for value in draws[start : start + 4])
        tooth = 1 + int(which * 13.999)
        jaw = "upper" if (which * 997) % 1 < 0.5 else "lower"
        across = (0.34 if side < 0.5 else -0.34) * (0.4 + 0.6 * share)
        found.append((jaw, tooth, across, 0.04 + 0.10 * share, 0.052 + 0.035 * big, 0.30 + 0.20 * big))
    return found


def _hole(numbers: Numbers, number: int, spot: Spot, frame: Frame) -> Field:
    """The share of each pixel ``[H, W]`` of one film that lies in a round spot of a crown."""
    jaw, tooth, across, depth, radius, _ = spot
    rank = tooth - 8 if tooth >= 8 else 7 - tooth
    count = (rank + 0.5 + across) * float(numbers["crowding"][number])
    far = (_DENSITY - np.sqrt(_DENSITY**2 - 4 * _BEND * count)) / (2 * _BEND)
    x = np.full((1, 1), far if tooth >= 8 else -far, np.float32)
    mine = {name: values[number] for name, values in numbers.items()}
    down = depth + float(mine["gape"])
    y = _bite(mine, x) + (-down if jaw == "upper" else down)
    away = np.hypot((frame.column[number] - x) * frame.aspect, frame.row[number] - y)
    return ramp(radius - away, min(frame.slope, 30.0))
