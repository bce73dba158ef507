"""The list of planted faults still fits the code: each is one line that stands there once, beside tests that exist."""

import shutil
from pathlib import Path

import pytest

from simulations.planted_faults import ROOT, Fault, faults


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
