"""Radiographs cut into tiles, for what is too small on a whole one; and masks of tiles put together again.

python -m simulations.tiles --out runs/tiles

writes a folder of tiles of the public panoramics, and one of procedural panoramics, each as docs/data.md describes it:
site, patient and split are those of the whole radiograph.
"""

import argparse
import csv
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from fedmedgen.composition import compose
from fedmedgen.data.cases import Case, CaseSet, MaskArray
from fedmedgen.data.partition import held
from fedmedgen.emission.writing import grey
from fedmedgen.seeds import seed_of

SIDE = 64
PANORAMICS = ("study=dental", "privacy=none", "data.size=[256,512]")
SOURCES = {
    "dental": PANORAMICS,
    "phantoms": (*PANORAMICS, "data.root=''", "data.columns.patient=patient", "data.phantoms.images_per_patient=1",
                 "data.phantoms.patients_per_site=100", "data.sites=1", "federation.min_sites=1"),
}  # fmt: skip
NAME = re.compile(r".+@(?P<top>\d+)-(?P<left>\d+)\.png")


def cut(case: Case, side: int = SIDE) -> list[Case]:
    """The tiles of a radiograph, row by row; their names say where they belong."""
    height, width = case.image.shape[1:]
    return [
        replace(
            case,
            image=case.image[:, top : top + side, left : left + side],
            mask=None if case.mask is None else case.mask[top : top + side, left : left + side],
            name=f"{Path(case.name).stem}@{top}-{left}.png",
            patient=case.patient or case.name,
        )
        for top in range(0, height, side) for left in range(0, width, side)
    ]  # fmt: skip


def joined(masks: Sequence[MaskArray], cases: CaseSet) -> tuple[list[MaskArray], CaseSet]:
    """Masks and cases of whole radiographs, tiles of one put together; cases that are no tiles stay as they are.

    Where a tile is missing, of one grey and so not worth writing, the radiograph is black and without a finding.
    """
    places = [NAME.fullmatch(case.name) for case in cases]
    if not all(places):
        return list(masks), cases
    tiles = [
        (int(place["top"]), int(place["left"]), mask, case)
        for place, mask, case in zip(places, masks, cases, strict=True) if place
    ]  # fmt: skip
    size = tuple(max(tile[axis] + tile[2].shape[axis] for tile in tiles) for axis in range(2))
    parts: dict[tuple[str, str], tuple[MaskArray, Case]] = {}
    for top, left, mask, case in tiles:
        stem = case.name.rpartition("@")[0]
        if (case.site, stem) not in parts:
            black, nothing = np.full((1, *size), -1, np.float32), np.zeros(size, np.uint8)
            parts[case.site, stem] = nothing.copy(), replace(case, image=black, mask=nothing, name=stem)
        guess, whole = parts[case.site, stem]
        rows, columns = slice(top, top + mask.shape[0]), slice(left, left + mask.shape[1])
        guess[rows, columns], whole.image[:, rows, columns] = mask, case.image
        if whole.mask is not None and case.mask is not None:
            whole.mask[rows, columns] = case.mask
    return [guess for guess, _ in parts.values()], cases.with_cases([whole for _, whole in parts.values()])


def balanced(patient: Sequence[Case]) -> list[Case]:
    """Of a patient's tiles those with a finding, and as many without; a patient of one picture keeps it."""
    if len(patient) == 1:
        return list(patient)
    found = [case for case in patient if case.mask is not None and case.mask.any()]
    others = [case for case in patient if case.mask is not None and not case.mask.any()]
    return found + sorted(others, key=lambda case: seed_of(0, "tile", case.site, case.name))[: len(found)]


def write_tiles(cases: CaseSet, folder: Path) -> None:
    """SITE/images, SITE/masks and SITE/labels.csv with the tiles of all cases."""
    for site in cases.sites:
        home = folder / site
        (home / "images").mkdir(parents=True, exist_ok=True)
        (home / "masks").mkdir(exist_ok=True)
        with (home / "labels.csv").open("w", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(["filename", "patient", "split"])
            for tile in (tile for case in cases.of_site(site) for tile in cut(case)):
                if np.ptp(tile.image) == 0:
                    continue
                Image.fromarray(grey(tile.image)).save(home / "images" / tile.name)
                if tile.mask is not None:
                    Image.fromarray(tile.mask * np.uint8(255)).save(home / "masks" / tile.name)
                table.writerow([tile.name, tile.patient, tile.split])


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--out", type=Path, default=Path("runs/tiles"))
    parser.add_argument("sources", nargs="*", choices=[*SOURCES, []], help="default: all")
    args = parser.parse_args(words)
    for name in args.sources or SOURCES:
        settings = compose(SOURCES[name])
        write_tiles(held(settings.data, settings.seed).loaded, args.out / name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
