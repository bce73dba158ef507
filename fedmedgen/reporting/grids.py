"""Tiles of sample images: a small PNG and the outlines of its masks as vector paths, so the page can hide them."""

import base64
import io
from dataclasses import dataclass

import numpy as np
from contourpy import contour_generator
from markupsafe import Markup
from PIL import Image

from fedmedgen.data.cases import Case, CaseSet, FloatArray, MaskArray

TILES = 8
MASK_COLOURS = ("#22b8cf", "#ff922b", "#e64980", "#94d82d", "#cc5de8")


@dataclass(frozen=True, kw_only=True)
class Row:
    """The tiles of one class: synthetic ones, and the phantoms that stand beside them."""

    name: str
    synthetic: tuple[Markup, ...]
    phantoms: tuple[Markup, ...]
    stand_in: str


def rows(synthetic: CaseSet, phantoms: CaseSet | None, stand_ins: tuple[str, ...] = ()) -> list[Row]:
    """One row for each class, the first cases of the set and no chosen ones; one row for a set without classes."""
    labels: list[int | None] = list(range(len(synthetic.classes))) or [None]
    found = []
    for label in labels:
        name = "all" if label is None else synthetic.classes[label]
        stand_in = stand_ins[label] if label is not None and label < len(stand_ins) else name
        found.append(
            Row(
                name=name,
                synthetic=_tiles(synthetic, label, f"synthetic, {name}"),
                phantoms=_tiles(phantoms, _label(phantoms, stand_in), f"phantom, {stand_in}") if phantoms else (),
                stand_in="" if stand_in == name else stand_in,
            )
        )
    return found


def _label(cases: CaseSet, name: str) -> int | None:
    return cases.classes.index(name) if name in cases.classes else None


def _tiles(cases: CaseSet, label: int | None, title: str) -> tuple[Markup, ...]:
    chosen = [case for case in cases if label is None or case.label == label][:TILES]
    return tuple(tile(case, f"{title}, number {number + 1}") for number, case in enumerate(chosen))


def tile(case: Case, title: str) -> Markup:
    """One case as inline SVG: the image, and a path for each mask class."""
    height, width = case.image.shape[1:]
    paths = [] if case.mask is None else outlines(case.mask)
    drawn = Markup("").join(
        Markup('<path class="mask" d="{}" stroke="{}" fill="{}"/>').format(path, colour, colour)
        for path, colour in paths
    )
    return Markup(
        '<svg class="tile" viewBox="0 0 {w} {h}" role="img" aria-label="{t}"><title>{t}</title>'
        '<image href="{src}" width="{w}" height="{h}"/>{d}</svg>'
    ).format(w=width, h=height, t=title, src=data_uri(case.image), d=drawn)


def outlines(mask: MaskArray) -> list[tuple[str, str]]:
    """Path and colour for each mask class that is drawn in ``[H, W]``."""
    found = []
    for value in range(1, int(mask.max(initial=0)) + 1):
        layer = np.pad((mask == value).astype(np.float32), 1)
        lines = contour_generator(z=layer).lines(0.5)
        path = "".join(_path(np.asarray(line)) for line in lines)
        if path:
            found.append((path, MASK_COLOURS[(value - 1) % len(MASK_COLOURS)]))
    return found


def _path(line: FloatArray) -> str:
    # pixel centres of the padded mask lie half a pixel before those of the picture
    points = [f"{x - 0.5:.1f} {y - 0.5:.1f}" for x, y in line]
    return "M" + "L".join(points) + "Z"


def data_uri(image: FloatArray) -> str:
    """A PNG of ``[1, H, W]`` in [-1, 1] as a data URI."""
    pixels = np.clip((image[0] + 1) * 127.5 + 0.5, 0, 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
