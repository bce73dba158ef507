"""What a grid of studies is: cells in the order of their worth, as a YAML file lists them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from fedmedgen.errors import SettingsError
from fedmedgen.schema import from_mapping, require


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One recipe, run once for each seed."""

    name: str
    overrides: tuple[str, ...]
    seeds: tuple[int, ...]
    published: float | None = None  # accuracy in %, of the nearest method, as published

    def __post_init__(self) -> None:
        require(bool(self.name) and "/" not in self.name, "cells.name", self.name, "a word without /")
        require(len(set(self.seeds)) == len(self.seeds) > 0, "cells.seeds", self.seeds, "seeds, each once")
        named = [word for word in self.overrides if word.partition("=")[0] in ("seed", "out")]
        require(not named, "cells.overrides", named, "without seed and out: the grid sets them")


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Cells in the order of their worth, and what their page shows."""

    title: str
    note: str = ""  # what to know when reading the page
    common: tuple[str, ...] = ()  # words before each cell's own
    cells: tuple[Cell, ...]
    measures: tuple[str, ...] = ("auc", "accuracy", "dice")
    compare: tuple[tuple[str, ...], ...] = ()  # pairs of cells; CELL/ROW for another row than tstr
    published: str = ""  # where the cells' published figures are from, and on what they were measured
    pictures: bool = False  # of synthetic cases, beside the page
    name: str

    def __post_init__(self) -> None:
        names = [cell.name for cell in self.cells]
        require(len(set(names)) == len(names) > 0, "cells", names, "named, each once")
        for pair in self.compare:
            known = len(pair) == 2 and all(side.partition("/")[0] in names for side in pair)
            require(known, "compare", pair, f"two of the cells {', '.join(names)}")

    def words(self, cell: Cell) -> tuple[str, ...]:
        return (*self.common, *cell.overrides)

    def with_words(self, words: Sequence[str]) -> "Grid":
        """The same cells, each with more words behind its own."""
        return replace(self, cells=tuple(replace(one, overrides=(*one.overrides, *words)) for one in self.cells))


def load(path: Path) -> Grid:
    """The grid of a YAML file, named as the file.

    **Raises** `SettingsError` for an unknown key, a cell named twice, or a comparison of unknown cells.
    """
    try:
        found = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise SettingsError(f"expected a grid of cells in {path}: {error}") from error
    if not isinstance(found, dict):
        raise SettingsError(f"expected a grid of cells in {path}; got {type(found).__name__}")
    pairs = found.get("compare") or []
    if pairs and isinstance(pairs[0], str):
        pairs = [pairs]
    return from_mapping(Grid, {**found, "compare": pairs, "name": path.stem})
