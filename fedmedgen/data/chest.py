"""A chest radiograph drawn from a few anatomical numbers: lungs, heart, diaphragm, ribs, spine, clavicles.

x runs from -1 (the patient's right, left in the picture) to 1, y from -1 (top) to 1; brightness from 0 (air) to 1.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fedmedgen.data.cases import MaskArray
from fedmedgen.data.film import Field, bell, crops, ramp, stamp, tile

CLASSES = ("normal", "opacity", "nodule")
MASK_CLASSES = ("background", "lung", "lesion")
MIX = {"normal": 0.55, "opacity": 0.40, "nodule": 0.05}

Numbers = Mapping[str, Field]

BODY: dict[str, tuple[float, float]] = {  # one draw a patient
    "apex": (-0.86, -0.70),
    "apex_x": (0.30, 0.38),
    "breadth": (0.76, 0.90),
    "heart_left": (0.14, 0.32),
    "heart_right": (0.05, 0.13),
    "heart_level": (0.74, 0.88),
    "aorta": (0.02, 0.08),
    "mediastinum": (0.11, 0.16),
    "rib_gap": (0.150, 0.185),
    "rib_fall": (0.60, 1.05),
    "rib_light": (0.7, 1.4),
    "breast": (-0.5, 1.0),
    "gas": (-0.7, 1.0),
    "flesh": (-1.0, 1.0),
    "vessels": (0.7, 1.3),
}
POSE: dict[str, tuple[float, float]] = {  # one draw a film
    "x": (-0.06, 0.06),
    "y": (-0.05, 0.05),
    "zoom": (0.92, 1.08),
    "tilt": (-0.05, 0.05),
    "turn": (-0.05, 0.05),
    "base": (0.42, 0.62),
    "base_left": (0.00, 0.09),
    "dome": (0.14, 0.30),
    "shoulder": (0.10, 0.45),
    "collar": (-0.66, -0.52),
    "collar_rise": (0.05, 0.30),
    "rib_phase": (0.0, 1.0),
    "gain": (-0.05, 0.05),
    "where_x": (0.0, 1.0),
    "where_y": (0.0, 1.0),
    "side": (-1.0, 1.0),
    "extent": (0.0, 1.0),
    "strength": (0.0, 1.0),
    "texture_y": (0.0, 1.0),
    "texture_x": (0.0, 1.0),
    "marker": (0.0, 1.0),
}


class Textures:
    """Tiles of noise that the films of one drawing share."""

    def __init__(self, size: tuple[int, int], rng: np.random.Generator) -> None:
        lines = np.abs(tile(rng, size, 0.24, 0.05))
        self.size = size
        self.vessels = np.exp(-((lines / 0.34) ** 2)).astype(np.float32)
        self.mottle = tile(rng, size, 0.4, 0.02)
        self.cloud = tile(rng, size, 0.5, 0.07)


class Frame(NamedTuple):
    """Positions in the patient: columns ``[B, 1, W]``, rows ``[B, H, 1]``, and sideways ``[B, H, W]`` with its size."""

    column: Field
    row: Field
    x: Field
    side: Field
    slope: float


class Lungs(NamedTuple):
    """How much of each pixel is lung, and where the rib cage ends."""

    share: Field  # [B, H, W]
    outer: Field  # [B, H, 1]


def render(numbers: Numbers, kinds: Sequence[str], textures: Textures, habitus: float) -> tuple[Field, MaskArray]:
    """Attenuation ``[B, H, W]`` and masks ``[B, H, W]`` of films with the given anatomy."""
    n = {name: values[:, None, None] for name, values in numbers.items()}
    frame = _frame(n, textures.size)
    lungs = _lungs(n, frame)
    places = np.stack([numbers["texture_y"], numbers["texture_x"]], 1)
    picture = _soft_tissue(n, frame, lungs.share, habitus)
    detail = crops(textures.vessels, places, textures.size)
    detail *= n["vessels"] * 0.17 * bell(np.abs(frame.column) - 0.18, 0.24) * bell(frame.row - 0.0, 0.40)
    detail += 0.02 * crops(textures.mottle, places[:, ::-1], textures.size)
    detail += 0.10 * bell(np.abs(frame.column) - 0.20, 0.07) * bell(frame.row + 0.06, 0.14)
    detail *= lungs.share
    picture += detail
    masks = (lungs.share > 0.5).astype(np.uint8)
    for kind, draw in (("opacity", _opacity), ("nodule", _nodule)):
        chosen = np.flatnonzero(np.array(kinds) == kind)
        if len(chosen):
            part = {name: values[chosen] for name, values in n.items()}
            here = Frame(frame.column[chosen], frame.row[chosen], frame.x[chosen], frame.side[chosen], frame.slope)
            light = draw(part, here, crops(textures.cloud, places[chosen], textures.size))
            light *= lungs.share[chosen]
            picture[chosen] += light * (0.15 + 0.19 * part["strength"])
            masks[chosen] = np.where((light > 0.45) & (masks[chosen] == 1), 2, masks[chosen])
    _bones(n, frame, lungs, picture)
    _outside(n, frame, picture, habitus)
    return picture, masks


def _frame(n: Numbers, size: tuple[int, int]) -> Frame:
    height, width = size
    across = ((np.arange(width, dtype=np.float32) + 0.5) * (2 / width) - 1)[None, None, :]
    down = ((np.arange(height, dtype=np.float32) + 0.5) * (2 / height) - 1)[None, :, None]
    column, row = (across - n["x"]) / n["zoom"], (down - n["y"]) / n["zoom"]
    x = column + n["turn"] * row
    return Frame(column, row, x, np.abs(x), min(min(size) / 2.6, 50.0))


def _edges(n: Numbers, row: Field) -> tuple[Field, Field, Field]:
    """The outer edge of both lungs and the inner edges of the right and the left one, at the given rows."""
    depth = np.clip((row - n["apex"]) / (n["base"] + 0.22 - n["apex"]), 0, 1)
    rest = 1 - depth
    outer = n["apex_x"] + (n["breadth"] - n["apex_x"]) * np.sqrt(1 - rest**2.4) - 0.05 * depth**4
    opened = np.sqrt(1 - rest**7)
    right = n["mediastinum"] + n["heart_right"] * bell(depth - n["heart_level"] + 0.03, 0.20)
    left = n["mediastinum"] + n["aorta"] * bell(depth - 0.34, 0.07)
    left = left + n["heart_left"] * bell(np.minimum(depth - n["heart_level"], 0), 0.19)
    return outer, n["apex_x"] - (n["apex_x"] - right) * opened, n["apex_x"] - (n["apex_x"] - left) * opened


def _lungs(n: Numbers, frame: Frame) -> Lungs:
    outer, right, left = _edges(n, frame.row)
    inside = frame.side - np.where(frame.x > 0, left, right)
    np.minimum(inside, outer - frame.side, out=inside)
    column = frame.column
    floor = n["base"] + n["base_left"] * (column > 0) + n["dome"] * ((np.abs(column) - 0.30) / 0.42) ** 2
    np.minimum(inside, floor + n["tilt"] * column - frame.row, out=inside)
    np.minimum(inside, frame.row - n["apex"], out=inside)
    return Lungs(ramp(inside, frame.slope), outer)


def _soft_tissue(n: Numbers, frame: Frame, share: Field, habitus: float) -> Field:
    """Flesh, mediastinum, abdomen, windpipe and breasts; lungs cut out of them."""
    weight = 0.03 * n["flesh"] + 0.05 * habitus
    picture = bell(frame.x, 0.30)
    picture *= 0.27 - 0.10 * bell(frame.row + 0.95, 0.25)
    picture += 0.45 + weight - 0.26 * np.clip(np.abs(frame.column) - 0.40, 0, 0.6)
    picture += 0.17 * ramp(frame.row - n["base"] - 0.02, 2.5)
    picture -= 0.13 * bell(frame.column - 0.02, 0.055) * ramp(-0.30 - frame.row, 8.0)
    gas = np.maximum(n["gas"], 0) * 0.30
    picture -= gas * bell(frame.column - 0.42, 0.13) * bell(frame.row - n["base"] - 0.26, 0.06)
    breasts = 0.11 * np.maximum(n["breast"], 0)
    breasts = breasts * bell(np.abs(frame.column) - 0.45, 0.24) * ramp(frame.row + 0.05, 3.0)
    within = 0.10 + 1.2 * weight + 0.07 * bell(frame.row + 0.75, 0.22) + breasts
    within += 0.05 * ramp(np.abs(frame.column) - 0.68, 6.0)
    within -= picture
    within *= share
    picture += within
    return picture


def _opacity(n: Numbers, frame: Frame, cloud: Field) -> Field:
    """A patchy consolidation, in a third of the cases in both lungs; height about 1."""
    row = n["apex"] + 0.30 + (n["base"] - n["apex"] - 0.30) * np.sqrt(n["where_y"])
    side = np.sign(n["side"])
    broad, tall = 0.11 + 0.17 * n["extent"], 0.13 + 0.16 * n["strength"]
    reach = side * (0.24 + 0.36 * n["where_x"])
    light = bell(frame.x - reach, broad) * bell(frame.row - row, tall)
    second = 0.9 * (np.abs(n["side"]) > 0.65)
    light += (
        second
        * bell(frame.x + side * (0.60 - 0.25 * n["where_x"]), broad * 0.8)
        * bell(frame.row - row + 0.3 * (n["extent"] - 0.5), tall * 0.8)
    )
    light *= np.clip(1.0 + 0.45 * cloud, 0.1, 1.7)
    return light


def _nodule(n: Numbers, frame: Frame, _cloud: Field) -> Field:
    """A small round shadow that lies wholly in a lung; height 1."""
    radius = 0.055 + 0.05 * n["extent"]
    row = n["apex"] + 0.25 + (n["base"] - n["apex"] - 0.32) * n["where_y"]
    outer, right, left = _edges(n, row)
    inner = np.where(n["side"] > 0, left, right)
    room = np.maximum(outer - inner - 2.2 * radius, 0)
    middle = np.sign(n["side"]) * (inner + 1.1 * radius + room * n["where_x"])
    light = radius - np.hypot(frame.x - middle, frame.row - row)
    return ramp(light.astype(np.float32), min(frame.slope, 22.0))


def _bones(n: Numbers, frame: Frame, lungs: Lungs, picture: Field) -> None:
    """Spine, ribs from behind and from the front, collar bones and shoulder blades."""
    vertebra = np.abs((frame.row / 0.16 + n["rib_phase"]) % 1 - 0.5)
    picture += bell(frame.x, 0.075) * (0.02 + 0.14 * vertebra)
    cage = ramp(lungs.outer + 0.05 - frame.side, 12.0)
    cage *= ramp(frame.row - n["apex"] + 0.08, 10.0) * ramp(n["base"] + 0.30 - frame.row, 5.0) * n["rib_light"]
    cage *= 0.35 + 0.65 * lungs.share
    reach = frame.side - 0.10
    behind: Field = (frame.row + n["tilt"] * frame.column) / n["rib_gap"] + n["rib_phase"]
    behind = behind - reach * (reach * (n["rib_fall"] / n["rib_gap"]) - 0.15 / n["rib_gap"])
    behind -= np.floor(behind)
    behind -= 0.5
    np.abs(behind, out=behind)
    rim = 0.6 + 2.0 * behind
    behind = ramp(0.23 - behind, frame.slope * 0.16)
    behind *= rim
    behind *= cage
    picture += 0.11 * behind
    picture += (
        0.10
        * bell(lungs.outer - frame.side, 0.022)
        * ramp(frame.row - n["apex"] - 0.1, 6.0)
        * ramp(n["base"] + 0.3 - frame.row, 6.0)
    )
    front: Field = frame.row / (n["rib_gap"] * 1.15) + 0.37 + n["rib_phase"] + reach * (0.62 / 0.18)
    front -= np.floor(front)
    front -= 0.5
    front = ramp(0.26 - np.abs(front), frame.slope * 0.12)
    front *= cage
    picture += front * (0.045 * ramp(np.abs(frame.column) - 0.40, 4.0) * ramp(frame.row + 0.5, 4.0))
    far = np.abs(frame.column)
    collar: Field = frame.row - (n["collar"] + 0.10 - n["collar_rise"] * far * (1.5 - far) - n["tilt"] * frame.column)
    collar = ramp(0.038 - np.abs(collar), frame.slope * 0.8)
    picture += collar * (0.15 * ramp(far - 0.08, 14.0) * ramp(0.74 - far, 4.0))
    blade = (
        bell(far - 0.88 + 0.10 * n["flesh"] + 0.12 * frame.row, 0.09)
        * ramp(frame.row + 0.62, 8.0)
        * ramp(0.05 - frame.row, 8.0)
    )
    picture += 0.06 * blade


def _outside(n: Numbers, frame: Frame, picture: Field, habitus: float) -> None:
    """Air above the shoulders and beside the chest; the marker of the side."""
    far = np.maximum(np.abs(frame.column) - 0.26, 0)
    above = frame.row + 1.02 - n["shoulder"] * np.sqrt(far * 1.2)
    arm = 1.1 * np.maximum(-0.05 - frame.row, 0)
    wall = n["breadth"] + 0.16 + 0.10 * habitus + 0.05 * n["flesh"] + arm - frame.side
    body = ramp(np.minimum(above, wall), frame.slope * 0.7)
    picture *= body
    picture += 0.02
    stamp(picture, np.flatnonzero(n["marker"][:, 0, 0] > 0).tolist(), (0.06, 0.90))
