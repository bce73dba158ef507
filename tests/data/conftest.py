"""A small good data set to spoil, and the table of docs/bad-input.md."""

import csv
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedmedgen.data import sources
from fedmedgen.data.cases import CaseSet
from fedmedgen.settings import DataSettings

BAD_INPUT = Path(__file__).resolve().parents[2] / "docs" / "bad-input.md"


def _picture(seed: int = 0, size: tuple[int, int] = (20, 24)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size).astype(np.uint8)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A site folder with pictures a.png to d.png of 20x24 pixels, their masks and a labels.csv."""
    folder = tmp_path / "set" / "north"
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    rows = []
    for number, name in enumerate("abcd"):
        Image.fromarray(_picture(number)).save(folder / "images" / f"{name}.png")
        Image.fromarray((_picture(number) > 128).astype(np.uint8) * 255).save(folder / "masks" / f"{name}.png")
        rows.append([f"{name}.png", number % 2, ["normal", "opacity"][number % 2], f"p{number}", "train"])
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["filename", "label", "label_name", "patient", "split"], *rows])
    return folder


@pytest.fixture
def scan_site(site: Path) -> Callable[..., CaseSet]:
    """Scan the set that holds the site, with two mask classes unless told otherwise."""

    def scan(root: Path | None = None, **settings: Any) -> CaseSet:
        given = {"mask_classes": ("background", "lung"), "size": (16, 16), **settings}
        return sources.scan(DataSettings(root=str(root or site.parent), **given), seed=0)

    return scan


@pytest.fixture(scope="session")
def documented() -> dict[str, dict[str, tuple[str, str]]]:
    """docs/bad-input.md: for each section, for each kind, what was given and what is said."""
    sections: dict[str, dict[str, tuple[str, str]]] = {}
    for part in re.split(r"^## ", BAD_INPUT.read_text(encoding="utf-8"), flags=re.M)[1:]:
        title, _, body = part.partition("\n")
        rows = re.findall(r"^\| `([^`]+)` \| (.*?) \| (.*?) \|$", body, flags=re.M)
        sections[title.strip()] = {kind: (given, said) for kind, given, said in rows}
    return sections
