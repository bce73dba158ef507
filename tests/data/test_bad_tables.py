"""Each kind of bad labels.csv, made for real: set aside with the words of docs/bad-input.md."""

from pathlib import Path

import pytest


def _swap(table: Path, old: str, new: str) -> None:
    text = table.read_text()
    assert old in text
    table.write_text(text.replace(old, new))


def table_unreadable(table: Path) -> None:
    """labels.csv saved as UTF-16"""
    table.write_text(table.read_text(), encoding="utf-16")


def table_empty(table: Path) -> None:
    """an empty labels.csv"""
    table.write_text("\n")


def table_columns(table: Path) -> None:
    """labels.csv with the column `file` in place of `filename`"""
    _swap(table, "filename,", "file,")


def row_unreadable(table: Path) -> None:
    """a line whose quote is never closed"""
    table.write_text(table.read_text() + '"z.png,0,normal,p9,train\n')


def row_length(table: Path) -> None:
    """a line with an unquoted comma"""
    _swap(table, "b.png,1,opacity,", "b.png,1,opacity, left,")


def row_without_file(table: Path) -> None:
    """a line for z.png, which isn't there"""
    table.write_text(table.read_text() + "z.png,0,normal,p9,train\n")


def row_outside(table: Path) -> None:
    """a line for ../../secret.png"""
    table.write_text(table.read_text() + "../../secret.png,0,normal,p9,train\n")


def duplicate_name(table: Path) -> None:
    """two lines for b.png, one normal and one opacity"""
    table.write_text(table.read_text() + "b.png,0,normal,p1,train\n")


def missing_row(table: Path) -> None:
    """no line for b.png"""
    _swap(table, "b.png,1,opacity,p1,train", "")


def missing_label(table: Path) -> None:
    """a line whose label and label name are empty"""
    _swap(table, "b.png,1,opacity,", "b.png,,,")


def label_not_a_number(table: Path) -> None:
    """the label `ill`"""
    _swap(table, "b.png,1,", "b.png,ill,")


def label_conflict(table: Path) -> None:
    """label 0 called normal in one line and opacity in another"""
    _swap(table, "b.png,1,", "b.png,0,")


def unknown_class(table: Path) -> None:
    """the class `opacty`, with data.classes=[normal,opacity]"""
    _swap(table, "b.png,1,opacity", "b.png,2,opacty")


def missing_patient(table: Path) -> None:
    """a line without a patient where the others have one"""
    _swap(table, ",p1,", ",,")


def unknown_split(table: Path) -> None:
    """the split `training`"""
    _swap(table, "p1,train", "p1,training")


MAKERS = {
    make.__name__.replace("_", "-"): make
    for make in (
        table_unreadable,
        table_empty,
        table_columns,
        row_unreadable,
        row_length,
        row_without_file,
        row_outside,
        duplicate_name,
        missing_row,
        missing_label,
        label_not_a_number,
        label_conflict,
        unknown_class,
        missing_patient,
        unknown_split,
    )
}
LEFT = {
    **dict.fromkeys(("table-unreadable", "table-empty", "table-columns"), 0),
    **dict.fromkeys(("row-unreadable", "row-without-file", "row-outside"), 4),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_a_bad_line_is_set_aside_in_the_documented_words(kind, site, scan_site, documented):
    MAKERS[kind](site / "labels.csv")
    cases = scan_site(classes=() if kind == "label-conflict" else ("normal", "opacity"))
    found = [(bad.kind, (MAKERS[kind].__doc__, bad.reason)) for bad in cases.rejected]
    assert found == [(kind, documented["labels.csv"][kind])]
    assert len(cases) == LEFT.get(kind, 3)


def test_every_documented_kind_of_bad_line_is_made_here(documented):
    assert set(documented["labels.csv"]) == set(MAKERS)


def test_labels_that_spreadsheets_turned_into_decimals_are_read(site, scan_site):
    _swap(site / "labels.csv", "b.png,1,", "b.png,1.0,")
    cases = scan_site()
    assert [case.label for case in cases] == [0, 1, 0, 1]
    assert cases.rejected == ()


def test_a_byte_order_mark_does_not_hide_the_first_column(site, scan_site):
    table = site / "labels.csv"
    table.write_text(table.read_text(), encoding="utf-8-sig")
    assert scan_site().rejected == ()
