"""`fedmedgen phantoms` and `fedmedgen data check`, as a user calls them."""

import json

import pytest
from PIL import Image

from fedmedgen.cli.main import main


def test_phantoms_are_written_and_checked(tmp_path, capsys):
    words = ["phantoms", "--count", "12", "--size", "16", "--out", str(tmp_path), "--json"]
    assert main(words) == 0
    written = json.loads(capsys.readouterr().out)
    assert written["images"] == 12
    assert main(["data", "check", str(tmp_path), "data.size=[16,16]", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["cases"], found["patients"], found["unit"], found["usable"]) == (12, 12, "patient", True)
    assert found["sites"][0]["masks"] == 12
    assert found["rejected"] == []


def test_panoramic_phantoms_are_wide_unless_told_otherwise(tmp_path):
    assert main(["phantoms", "--count", "2", "--anatomy", "panoramic", "--out", str(tmp_path)]) == 0
    first = next((tmp_path / "site-1" / "images").iterdir())
    assert Image.open(first).size == (128, 64)


def test_a_check_names_bad_files_and_still_succeeds(tmp_path, capsys):
    main(["phantoms", "--count", "12", "--size", "16", "--out", str(tmp_path)])
    (tmp_path / "site-1" / "images" / "phantom-000003.png").write_bytes(b"")
    capsys.readouterr()
    assert main(["data", "check", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "1 files set aside:" in said
    assert "site-1/phantom-000003.png: the file is empty (0 bytes): copy it again [empty-file]" in said


def test_a_check_fails_when_too_little_is_usable_and_still_says_what_is_there(site, capsys):
    assert main(["data", "check", str(site.parent), "--json"]) == 1
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert (found["cases"], found["usable"]) == (4, False)
    assert "error: expected at least 8 usable patients" in captured.err


def test_a_check_of_nothing_fails_in_words(tmp_path, capsys):
    assert main(["data", "check", str(tmp_path / "none")]) == 1
    assert "expected a folder or an npz" in capsys.readouterr().err


def test_a_check_takes_settings(site, capsys):
    table = site / "labels.csv"
    table.write_text(table.read_text().replace("patient", "pid"))
    words = ["data", "check", str(site), "data.columns.patient=pid", "data.min_patients=4", "--json"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["unit"] == "patient"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--count", "0"], "--count must be at least 1"),
        (["--count", "3", "--size", "4"], "--size must be one number or HEIGHTxWIDTH"),
        (["--count", "3", "--site", "../x"], "--site must be a plain folder name"),
    ],
)
def test_impossible_phantoms_are_refused_as_wrong_usage(tmp_path, capsys, words, said):
    assert main(["phantoms", "--out", str(tmp_path), *words]) == 2
    assert said in capsys.readouterr().err


def test_phantoms_are_never_written_over_files(tmp_path, capsys):
    words = ["phantoms", "--count", "2", "--size", "16", "--out", str(tmp_path)]
    assert [main(words), main(words)] == [0, 1]
    assert "holds files already" in capsys.readouterr().err


def test_settings_may_stand_after_options(site, capsys):
    assert main(["data", "check", str(site), "--json", "data.min_patients=4"]) == 0
    assert json.loads(capsys.readouterr().out)["usable"]
