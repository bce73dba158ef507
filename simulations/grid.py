"""Run a grid of studies cell by cell, most valuable first, a row of docs/results/GRID.csv as each ends.

python -m simulations.grid simulations/grids/digits.yaml --out docs/results
python -m simulations.grid simulations/grids/digits.yaml --out docs/results --page
python -m simulations.grid simulations/grids/compare-lungs.yaml --out mine data.root=/data/lungs 'data.classes=[a,b]'
"""

import argparse
import json
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from fedmedgen.errors import RunError, SettingsError
from fedmedgen.reporting.record import read
from simulations.grid_file import Grid, load
from simulations.grid_page import Comparison, Shown, page
from simulations.grid_table import DONE, Row, Table, code_commit, failed_row, finished_row, plain_words
from simulations.results import sheet
from simulations.run import result_of, simulate

RUNS = Path("runs")
Runner = Callable[[Sequence[str], Path], dict[str, Any]]
"""Runs the study of some words in a folder, or goes on with the one there; its result."""


@dataclass(frozen=True)
class Job:
    """A cell with one of its seeds."""

    grid: str
    cell: str
    seed: int
    words: tuple[str, ...]

    @property
    def key(self) -> dict[str, Any]:
        """What a row must say to be this job's."""
        return {"grid": self.grid, "cell": self.cell, "seed": self.seed, "overrides": shlex.join(self.words)}

    @property
    def folder(self) -> Path:
        return RUNS / f"grid-{self.grid}" / f"{self.cell}-{self.seed}"


def jobs(grid: Grid) -> Iterator[Job]:
    for cell in grid.cells:
        for seed in cell.seeds:
            yield Job(grid.name, cell.name, seed, grid.words(cell))


def run_grid(grid: Grid, table: Table, *, runner: Runner, retry: bool = False) -> int:
    """Run what is left, each cell's row on the disk before the next begins; the number of failures."""
    console = Console(stderr=True, highlight=False)
    left = [job for job in jobs(grid) if table.status(job.key) in ((None, "failed") if retry else (None,))]
    total, begin, failures = sum(1 for _ in jobs(grid)), time.monotonic(), 0
    console.print(f"[bold]{grid.name}[/]: {total - len(left)} of {total} behind us, {len(left)} to run")
    for number, job in enumerate(left):
        spent = time.monotonic() - begin
        ahead = f", about {spent / number * (len(left) - number) / 60:.0f} min left" if number else ""
        console.print(f"[bold]{number + 1}/{len(left)} {job.cell}, seed {job.seed}[/] ({spent / 60:.1f} min{ahead})")
        row = measured(job, table, runner)
        if grid.pictures and row["status"] == DONE:
            _picture(job.folder, table.path.parent / picture_name(grid, job.cell))
        table.append(row)
        failures += row["status"] != DONE
        console.print(_ending(row))
    return failures


def measured(job: Job, table: Table, runner: Runner) -> Row:
    """The row of a job that was run to its end or its failure; an interrupted one goes on where it stood."""
    commit, started, processor = code_commit(), time.monotonic(), time.process_time()
    attempts = _prepare(job, commit, table.attempts(job.key))
    whole = not (job.folder / "checkpoint.json").is_file()
    _forget_peak()
    try:
        result = runner([*job.words, f"seed={job.seed}"], job.folder)
        if result.get("status") != DONE:
            raise RunError(str(result.get("reason") or "the run has no completed result"))
        row = finished_row(result)
        if whole:  # of a cell that goes on, the part before is unknown
            row["cpu_seconds"] = round(time.process_time() - processor, 1)
    except Exception as error:  # any fault of one cell must not cost the others
        row = failed_row(error, time.monotonic() - started)
    return {**job.key, **row, "attempts": attempts, "commit": commit}


def simulated(words: Sequence[str], folder: Path) -> dict[str, Any]:
    """Simulate a study in a folder, or go on with it; its result."""
    if (folder / "checkpoint.json").is_file():
        return result_of(simulate(resume=str(folder)))
    return result_of(simulate(words, out=str(folder)))


def picture_name(grid: Grid, cell: str) -> str:
    return f"{grid.name}-{cell}.png"


def _picture(run: Path, path: Path) -> None:
    """The first synthetic cases of a run, no chosen ones."""
    synthetic = read(run).synthetic
    if synthetic is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet(synthetic).save(path, optimize=True)


def _prepare(job: Job, commit: str, known: int) -> int:
    """Clear the job's folder of whatever other words or other code left there; the number of this attempt."""
    note = job.folder / "cell.json"
    wanted = {"words": list(job.words), "commit": commit}
    before: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        before = json.loads(note.read_text())
    same = {key: before.get(key) for key in wanted} == wanted and not commit.endswith("dirty")
    if not same:
        shutil.rmtree(job.folder, ignore_errors=True)
    job.folder.mkdir(parents=True, exist_ok=True)
    attempts = 1 + max(known, int(before.get("attempts", 0)) if before.get("words") == wanted["words"] else 0)
    note.write_text(json.dumps({**wanted, "attempts": attempts}))
    return attempts


def _forget_peak() -> None:
    """Let Linux measure this process' peak memory afresh; elsewhere a cell's peak is that of all before it, too."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _ending(row: Row) -> str:
    if row["status"] != DONE:
        return f"  [red]failed[/]: {row['reason']}"
    shown = {"epsilon": row["epsilon"], "TSTR AUC": row.get("tstr_auc"), "TRTR AUC": row.get("trtr_auc")}
    figures = ", ".join(f"{name} {value:.3g}" for name, value in shown.items() if isinstance(value, float))
    return f"  done in {row['seconds']} s: {figures}"


def write_page(grid: Grid, table: Table, out: Path, *, command: str) -> Path:
    """OUT/GRID.md from the table alone; its path."""
    rows = [row for job in jobs(grid) for row in [table.latest(job.key)] if row is not None]
    pictures = {cell.name: picture_name(grid, cell.name) for cell in grid.cells}
    shown = Shown(
        name=grid.name,
        title=grid.title,
        note=grid.note,
        command=plain_words(command),
        cells=tuple(cell.name for cell in grid.cells),
        wanted=sum(1 for _ in jobs(grid)),
        measures=grid.measures,
        comparisons=tuple(Comparison(*pair) for pair in grid.compare),
        source=grid.published,
        published={cell.name: cell.published for cell in grid.cells if cell.published is not None},
        pictures={cell: name for cell, name in pictures.items() if (out / name).is_file()},
    )
    path = out / f"{grid.name}.md"
    path.write_text("\n".join(page(shown, rows, others=len(table.rows) - len(rows))) + "\n")
    return path


def main(words: Sequence[str] | None = None, *, runner: Runner = simulated, command: str = "") -> int:
    """Run a grid and write its page; `command` is what the page names, where that is another than this module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grid", type=Path, metavar="GRID.yaml")
    parser.add_argument("words", nargs="*", metavar="key=value", help="settings of every cell, behind its own")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--retry", action="store_true", help="run cells again whose last run failed")
    parser.add_argument("--page", action="store_true", help="run nothing: write OUT/GRID.md anew from OUT/GRID.csv")
    args = parser.parse_intermixed_args(words)
    try:
        grid = load(args.grid).with_words(args.words)
        table = Table.at(args.out / f"{grid.name}.csv")
        failures = 0 if args.page else run_grid(grid, table, runner=runner, retry=args.retry)
        told = shlex.join([str(args.grid), "--out", str(args.out), *args.words])
        command = command or f"python -m simulations.grid {told}"
        sys.stdout.write(f"{write_page(grid, table, args.out, command=command)}\n")
        return int(failures > 0)
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same command goes on from here\n")
        return 130


if __name__ == "__main__":
    sys.exit(main())
