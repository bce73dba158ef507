"""The list of planted faults still fits the code: each is one line that stands there once, beside tests that exist."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from simulations.planted_faults import END, ROOT, START, Fault, faults, main, row, write_table


@pytest.mark.parametrize("fault", faults(), ids=lambda fault: fault.name)
def test_each_fault_changes_one_line_of_production_code(fault: Fault, tmp_path: Path) -> None:
    copy = tmp_path / fault.file
    copy.parent.mkdir(parents=True)
    shutil.copyfile(ROOT / fault.file, copy)
    before = copy.read_text().splitlines()
    fault.plant(tmp_path)
    changed = [pair for pair in zip(before, copy.read_text().splitlines(), strict=True) if pair[0] != pair[1]]
    assert len(changed) == 1
    assert not fault.file.startswith("tests")
    assert all((ROOT / test.partition("::")[0]).exists() for test in fault.tests)


def test_a_fault_that_no_longer_fits_is_refused(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text("a = 1\na = 1\n")
    with pytest.raises(ValueError, match="found 2"):
        Fault("twice", "code.py", "a = 1", "a = 2", ("tests",)).plant(tmp_path)


def test_a_word_that_no_fault_has_plants_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["planted_faults", "--only", "no such fault"])
    with pytest.raises(SystemExit, match="2"):
        main()


def test_rows_that_were_measured_stay_until_their_fault_is_another(tmp_path: Path) -> None:
    page = tmp_path / "privacy.md"
    page.write_text(f"before\n{START}\n{END}\nafter\n")
    one, other = (Fault(name, "code.py", "a = 1", "a | 2", ("tests",)) for name in ("one", "other"))
    write_table(page, [row(other, ["tests/x.py::test_it_is_seen"])], [one, other])
    write_table(page, [row(one, ["tests/x.py::test_it_is_seen"])], [one, other])
    lines = [line for line in page.read_text().splitlines() if line.startswith("| ") and "it is seen" in line]
    assert [line.split(" | ")[:2] for line in lines] == [["| 1", "one"], ["| 2", "other"]]
    write_table(page, [row(one, [])], [one, replace(other, new="a = 3")])
    assert "other" not in page.read_text()
    assert "**not caught**" in page.read_text()
    assert page.read_text().startswith("before\n")
    assert page.read_text().endswith("after\n")
