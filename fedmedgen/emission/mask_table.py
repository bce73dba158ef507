"""segments.csv, written row by row, so that what an interruption leaves can be gone on with."""

import csv
import io
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from fedmedgen.errors import RunError

TABLE, SEGMENTER = "segments.csv", "segmenter"
Row = Mapping[str, object]


def write(out: Path, columns: Iterable[str], rows: Iterable[Row] = ()) -> None:
    """The table anew; a folder of masks is known by it, so it is there before the first of them."""
    out.mkdir(parents=True, exist_ok=True)
    fresh = out / f"{TABLE}.part"
    fresh.write_text(_lines(columns, rows, header=True), encoding="utf-8", newline="")
    fresh.replace(out / TABLE)


def restart(out: Path, rows: Collection[Row]) -> None:
    """Keep these rows of an earlier part alone; without any, the table is begun anew by the next file."""
    if rows:
        write(out, next(iter(rows)), rows)
    else:
        (out / TABLE).unlink(missing_ok=True)


def add(out: Path, row: Row) -> None:
    """Append a row."""
    with (out / TABLE).open("a", encoding="utf-8", newline="") as file:
        file.write(_lines(row, [row]))


def read(out: Path, segmenter: str) -> dict[str, Row]:
    """The rows of an earlier part by file as `cell` names it, without a line that a kill cut short.

    **Raises** `RunError` if they are of another segmenter.
    """
    if not (out / TABLE).is_file():
        return {}
    with (out / TABLE).open(encoding="utf-8", newline="") as file:
        text = file.read()
    rows = list(csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1], newline="")))
    if others := {row.get(SEGMENTER) or "none" for row in rows} - {segmenter}:
        raise RunError(
            f"{out} holds masks by segmenter {min(others)[:12]}, the run has {segmenter[:12]}: name a new folder, "
            "or the run that they are of"
        )
    return {row["file"]: row for row in rows}


def cell(name: str) -> str:
    """A file's name as the table has it: bytes that are no text as \\udcXX."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def _lines(columns: Iterable[str], rows: Iterable[Row], *, header: bool = False) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(
        {name: cell(value) if isinstance(value, str) else value for name, value in row.items()} for row in rows
    )
    return text.getvalue()
