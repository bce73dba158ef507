"""labels.csv of a site: which line speaks of which picture, and what each line lacks."""

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedmedgen.data.cases import Rejected
from fedmedgen.data.rejection import Unusable
from fedmedgen.settings import ColumnSettings

SPLITS = ("train", "val", "test")
Line = tuple[int, list[str] | None]  # its number from 1, and its cells if they can be read


@dataclass(frozen=True)
class Row:
    """What labels.csv says of one picture; None where there is no such column."""

    line: int
    number: int | None = None
    name: str | None = None
    patient: str | None = None
    split: str = ""


@dataclass(frozen=True)
class Table:
    """Rows by file name, the lines set aside by file name, and whether the file gives labels at all.

    A file has one row for each patient whose line names it: what one patient's line says moves no other's.
    """

    rows: Mapping[str, tuple[Row, ...]] = field(default_factory=dict)
    rejected: Mapping[str, Rejected] = field(default_factory=dict)
    labelled: bool = False


def read_table(path: Path, columns: ColumnSettings, *, fixed: bool = False) -> Table:
    """Every usable line of labels.csv; `fixed`: the classes are fixed, so that no line can contradict another.

    **Raises** `Unusable` if the file as a whole can't be used.
    """
    lines = _lines(path)
    header = [cell.strip() for cell in lines[0][1] or ()]
    if columns.filename not in header:
        raise Unusable("table-columns", expected=columns.filename, got=", ".join(header))
    rows: dict[str, tuple[Row, ...]] = {}
    rejected: dict[str, Rejected] = {}
    names: dict[int, str] = {}
    for (name, _), found in _by_name_and_patient(lines[1:], header, columns).items():
        try:
            row = _row(name, found, header, columns)
            if not fixed:
                _agree(row, names)
            rows[name] = (*rows.get(name, ()), row)
        except Unusable as unusable:
            rejected[name] = Rejected(name, unusable.kind, str(unusable))
    named = {column for column in header if column}
    return Table(rows, rejected, bool({columns.label, columns.label_name} & named))


def _lines(path: Path) -> list[tuple[int, list[str] | None]]:
    """Number and cells of every line that isn't empty, the header first; None where a line is no text or no row.

    Each line is read for itself: a quote that one forgets to close swallows no other.
    """
    try:
        content = path.read_bytes()
    except OSError:
        raise Unusable("table-unreadable") from None
    lines = [(number, _cells(line)) for number, line in enumerate(content.splitlines(), 1)]
    lines = [(number, cells) for number, cells in lines if cells is None or any(cell.strip() for cell in cells)]
    if not lines:
        raise Unusable("table-empty")
    if lines[0][1] is None:
        raise Unusable("table-unreadable")
    return lines


def _cells(line: bytes) -> list[str] | None:
    try:
        text = line.decode("utf-8-sig")
        return None if "\0" in text else next(csv.reader([text], strict=True), [])
    except (UnicodeDecodeError, csv.Error):
        return None


def patient_column(header: Sequence[str], columns: ColumnSettings) -> str | None:
    """The first of the columns that may name the patient which a table has."""
    names = (name.strip() for name in columns.patient.split(","))
    return next((name for name in names if name in header), None)


def _by_name_and_patient(
    lines: Sequence[Line], header: Sequence[str], columns: ColumnSettings
) -> dict[tuple[str, str], list[Line]]:
    """Lines that speak of one file for one patient; a line without a usable name stands alone."""
    column = patient_column(header, columns)
    who = len(header) if column is None else header.index(column)
    where, out = header.index(columns.filename), dict[tuple[str, str], list[Line]]()
    for line, cells in lines:
        name, patient = (cells[at].strip() if cells and at < len(cells) else "" for at in (where, who))
        out.setdefault((name or f"line {line}", patient), []).append((line, cells))
    return out


def _row(name: str, found: Sequence[Line], header: Sequence[str], columns: ColumnSettings) -> Row:
    line, cells = found[0]
    if len(found) > 1:
        raise Unusable("duplicate-name", count=len(found), lines=", ".join(str(number) for number, _ in found))
    if cells is None:
        raise Unusable("row-unreadable", line=line)
    if len(cells) != len(header):
        raise Unusable("row-length", line=line, got=len(cells), expected=len(header))
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise Unusable("row-outside", line=line)
    said = {column: cell.strip() for column, cell in zip(header, cells, strict=True) if column}
    label, label_name = said.get(columns.label, ""), said.get(columns.label_name, "")
    labelled = columns.label in said or columns.label_name in said
    if labelled and not label and not label_name:
        raise Unusable("missing-label", line=line)
    split = said.get(columns.split, "")
    if columns.split in said and split not in SPLITS:
        raise Unusable("unknown-split", line=line, got=split)
    patient = said.get(patient_column(header, columns) or "")
    return Row(line, _number(label, line), label_name or None, patient or None, split)


def _number(label: str, line: int) -> int | None:
    """The label as a number; "1.0", which spreadsheets write, counts as 1."""
    if not label:
        return None
    if not re.fullmatch(r"[0-9]{1,9}(\.0*)?", label):
        raise Unusable("label-not-a-number", line=line, got=label)
    return int(label.split(".")[0])


def _agree(row: Row, names: dict[int, str]) -> None:
    """**Raises** `Unusable` if the line gives a known label number another name."""
    if row.number is None or row.name is None:
        return
    expected = names.setdefault(row.number, row.name)
    if expected != row.name:
        raise Unusable("label-conflict", line=row.line, label=row.number, got=row.name, expected=expected)
