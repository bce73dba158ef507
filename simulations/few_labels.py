"""Segmentation from a few labelled radiographs, by row, number of labels and draw: docs/results/few-labels.md.

python -m simulations.few_labels --out docs/results

`--task` names another one: lungs-montgomery, lungs-both, lungs-128, caries, caries-64, caries-tiles (after `python -m
simulations.tiles`). Rows whose network isn't pre-trained yet (`--pretrain NAME …`) wait; cells that stand in the CSV
aren't computed again. Several processes may share the work: each takes cells that nobody has taken. A killed one
leaves its mark in RUNS/few-labels-taken, to be removed by hand.
"""

import argparse
import csv
import datetime
import io
import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from fedmedgen.composition import compose
from fedmedgen.data.cases import Case, CaseSet
from fedmedgen.data.partition import held
from fedmedgen.evaluation.segmentation import score
from fedmedgen.seeds import seed_of
from fedmedgen.settings import Settings
from server.run_store import write_text
from simulations.few_labels_ablations import ABLATIONS, LABELS, of_row, source_of
from simulations.few_labels_ablations import DRAWS as ABLATION_DRAWS
from simulations.few_labels_page import page
from simulations.few_labels_rows import ROWS, Cell, pretrained
from simulations.few_labels_tasks import RATES, TASKS, Task
from simulations.grid_table import code_commit
from simulations.tiles import balanced, joined

TUNED_AT, TUNED_DRAW = 5, 5  # labels, and a draw that no cell has
TUNED_ON = "validation"  # training patients who are in no draw
FIELDS = ("row", "labels", "draw", "rate", "site", "dice", "hd95", "missed", "seconds", "commit", "date")
Found = dict[str, Any]


def sides(settings: Settings, task: Task) -> tuple[list[Case], CaseSet, CaseSet]:
    """The training cases that labels are drawn from, cases of validation patients of each site, and the test cases."""
    loaded = held(settings.data, settings.seed).loaded
    train = loaded.of_split("train")
    apart = sorted(_by_patient(train), key=lambda unit: seed_of(0, "validation", unit[0].site, unit[0].name))
    few = {site: [unit for unit in apart if unit[0].site == site][: task.validation] for site in train.sites}
    chosen = [case for part in few.values() for unit in part for case in unit]
    names = {(case.site, case.name) for case in chosen}
    pool = [case for case in train if task.labelled_at in ("", case.site) and (case.site, case.name) not in names]
    return pool, train.with_cases(chosen), loaded.of_split("test")


def measured(cell: Cell, test: CaseSet) -> list[Found]:
    """Dice and HD95 (pixels) of a row's masks on all test cases, and on each site's; tiles count as put together."""
    start = time.monotonic()
    predict = (ROWS | ABLATIONS)[cell.row](cell)
    seconds = round(time.monotonic() - start, 1)
    with torch.no_grad():
        masks, test = joined(list(predict(torch.from_numpy(test.images())).to(torch.uint8).numpy()), test)
    known = {"row": cell.row, "labels": cell.labels, "draw": cell.draw, "rate": cell.rate, "seconds": seconds}
    found = []
    for site in ("all", *test.sites):
        places = [place for place, case in enumerate(test) if site in ("all", case.site)]
        got = score([masks[place] for place in places], test.with_cases([test.cases[place] for place in places]))
        numbers = {"dice": got["dice_mean"], "hd95": got["hd95"], "missed": got["hd95_missed"]}
        found.append(known | {"site": site, "commit": code_commit(), "date": f"{datetime.date.today()}"} | numbers)
    return found


def tuned_rate(
    row: str, cells: "Cells", settings: Settings, pool: list[Case], validation: CaseSet, rates: Sequence[float] = RATES
) -> float:
    """The best of the same few learning rates for every row, at 5 labels of a draw of its own, by validation Dice."""
    best, rate_of_best = -1.0, rates[1]
    for rate in rates:
        cell = Cell(row, TUNED_AT, TUNED_DRAW, rate, settings, _drawn(pool, TUNED_AT, TUNED_DRAW), pool, cells.runs)
        found = cells.once(cell, validation, TUNED_ON)
        if found > best:
            best, rate_of_best = found, rate
    return rate_of_best


class Cells:
    """The CSV of cells that are done, and marks of those that some process has taken."""

    def __init__(self, path: Path, runs: Path) -> None:
        self.path, self.runs = path, runs

    def read(self) -> list[Found]:
        """Whole rows; a last line that a kill cut short is dropped from the file."""
        if not self.path.is_file():
            return []
        text = self.path.read_text()
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            write_text(self.path, whole)
        return list(csv.DictReader(io.StringIO(whole)))

    def once(self, cell: Cell, test: CaseSet, on: str) -> float:
        """Dice on all of the cases, measured now unless it stands in the CSV."""
        for row in self.read():
            same = (row["row"], row["labels"], row["draw"], float(row["rate"]))
            if row["site"] == f"{on}: all" and same == (cell.row, str(cell.labels), str(cell.draw), cell.rate):
                return float(row["dice"])
        found = measured(cell, test)
        self.add([row | {"site": f"{on}: {row['site']}"} for row in found])
        return float(found[0]["dice"])

    def add(self, rows: Sequence[Found]) -> None:
        is_new = not self.path.is_file()
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            if is_new:
                writer.writeheader()
            writer.writerows(rows)

    def take(self, cell: Cell) -> bool:
        """Whether the cell is this process's to compute: nobody has done or begun it."""
        mark = self._mark(cell)
        mark.parent.mkdir(parents=True, exist_ok=True)
        done = any(
            (row["row"], row["labels"], row["draw"], row["site"]) == (cell.row, str(cell.labels), str(cell.draw), "all")
            for row in self.read()
        )
        with suppress(FileExistsError):
            if not done:
                mark.touch(exist_ok=False)
                return True
        return False

    def give_back(self, cell: Cell) -> None:
        """A cell that was taken and isn't done is anybody's again."""
        self._mark(cell).unlink(missing_ok=True)

    def _mark(self, cell: Cell) -> Path:
        return self.runs / f"{self.path.stem}-taken" / f"{cell.row}-{cell.labels}-{cell.draw}"


def cells_of(
    rows: Sequence[str], task: Task, cells: Cells, settings: Settings, pool: list[Case], validation: CaseSet
) -> Iterator[Cell]:
    """Every cell, most valuable first: row by row, and of a row the middle number of labels first."""
    for row in rows:
        if not pretrained(source_of(row), cells.runs):
            continue
        if row in ABLATIONS:
            rate = tuned_rate(of_row(row), cells, settings, pool, validation, task.rates)
            for draw in range(ABLATION_DRAWS):
                yield Cell(row, LABELS, draw, rate, settings, _drawn(pool, LABELS, draw), pool, cells.runs)
            continue
        rate = tuned_rate("scratch" if row == "mean-mask" else row, cells, settings, pool, validation, task.rates)
        for labels in task.counts:
            for draw in range(task.draws):
                yield Cell(row, labels, draw, rate, settings, _drawn(pool, labels, draw), pool, cells.runs)


def _drawn(pool: Sequence[Case], labels: int, draw: int) -> list[Case]:
    """The labelled cases of a draw of so many patients; those of fewer labels are among those of more."""
    patients = _by_patient(pool)
    order = np.random.default_rng(seed_of(0, "few labels", draw)).permutation(len(patients))
    return [case for place in order[:labels] for case in balanced(patients[place])]


def _by_patient(cases: Iterable[Case]) -> list[list[Case]]:
    """The cases of each patient, in the order of first appearance."""
    units: dict[tuple[str, str], list[Case]] = {}
    for case in cases:
        units.setdefault((case.site, case.patient or case.name), []).append(case)
    return list(units.values())


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--rows", nargs="*", choices=[*ROWS, *ABLATIONS])
    parser.add_argument("--task", default="lungs", choices=list(TASKS))
    parser.add_argument("--pretrain", nargs="*", default=[], metavar="NAME", help="only these runs, no cells")
    args = parser.parse_args(words)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    torch.set_num_threads(1)
    task, name = TASKS[args.task], "few-labels" if args.task == "lungs" else f"few-labels-{args.task}"
    if args.pretrain:
        if odd := [one for one in args.pretrain if one not in task.pretrained]:
            parser.error(f"{args.task} is pre-trained as {', '.join(task.pretrained)}; got {', '.join(odd)}")
        for one in args.pretrain:
            task.pretrained[one].run(task.runs(args.runs), one)
        return 0
    settings = compose(task.words)
    pool, validation, test = sides(settings, task)
    args.out.mkdir(parents=True, exist_ok=True)
    cells = Cells(args.out / f"{name}.csv", task.runs(args.runs))
    wanted = cells_of(args.rows or task.rows, task, cells, settings, pool, validation)
    for cell in track(wanted, "cells", console=Console(stderr=True)):
        if cells.take(cell):
            try:
                cells.add(measured(cell, test))
            except BaseException:
                cells.give_back(cell)
                raise
            write_page(args.out / f"{name}.md", args.task, cells)
    write_page(args.out / f"{name}.md", args.task, cells)
    return 0


def write_page(path: Path, task: str, cells: Cells) -> None:
    path.write_text("\n".join(page(cells.read(), task)) + "\n")


if __name__ == "__main__":
    sys.exit(main())
