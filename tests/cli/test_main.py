"""The program: help, exit codes, errors in words, and what an installation without the studies says."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fedmedgen.cli import main as program

COMMANDS = (
    "data",
    "phantoms",
    "emit",
    "evaluate",
    "report",
    "ledger",
    "selfcheck",
    "simulate",
    "audit",
    "release",
    "segment",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example_and_a_json_form(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        program.main([command, "--help"])
    said = capsys.readouterr().out
    assert stopped.value.code == 0
    assert f"fedmedgen {command}" in said.partition("example")[2]
    assert "--json" in said


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from fedmedgen.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'flwr', 'numpy', 'hydra', 'diffusers', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_wrong_usage_exits_2_and_says_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        program.main(["simulate", "--bakend", "flower"])
    assert stopped.value.code == 2
    assert "--bakend" in capsys.readouterr().err


def test_an_unknown_setting_exits_2_and_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["simulate", "study=demo", "privacy.epsilom=3"]) == 2
    assert "did you mean 'privacy.epsilon'" in capsys.readouterr().err


def test_a_refusal_exits_1_with_its_reason_on_standard_error(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert program.main(["report", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "settings.yaml" in said.err


def test_a_path_that_cannot_be_used_is_said_in_words_and_traced_only_when_asked(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "project.yaml").write_text("name: chest\nserver: {names: [localhost]}\nsites: [{name: north}]\n")
    nowhere = tmp_path / "project.yaml" / "out"
    words = ["provision", str(tmp_path / "project.yaml"), "--out", str(nowhere)]
    assert program.main(words) == 1
    assert capsys.readouterr().err == f"error: {nowhere} can't be used: Not a directory\n"
    told = [sys.executable, "-m", "fedmedgen.cli.main", "--verbose", *words]
    done = subprocess.run(told, capture_output=True, text=True, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (1, True)
    assert f"error: {nowhere} can't be used" in done.stderr


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PermissionError(13, "Permission denied", "a", None, "b"), "a and b can't be used: Permission denied"),
        (ConnectionError("the other side is gone"), "ConnectionError: the other side is gone"),
    ],
)
def test_what_an_operating_system_refuses_is_said_with_the_paths_that_are_known(error: OSError, words: str) -> None:
    assert program._words(error) == words


def test_the_studies_are_listed_as_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["simulate", "--list", "--json"]) == 0
    assert {"demo", "lungs", "pneumonia", "dental", "folder"} <= set(json.loads(capsys.readouterr().out))


def without(missing: str) -> str:
    """A program in which importing `missing` fails as if it were not installed."""
    return (
        "import sys, importlib.abc\n"
        "class Absent(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] == {missing!r}:\n"
        f"            raise ModuleNotFoundError('No module named ' + {missing!r}, name={missing!r})\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from fedmedgen.cli.main import main\n"
        "sys.exit(main(['simulate', 'study=demo', '--list']))\n"
    )


def test_an_installation_without_the_studies_says_where_they_live() -> None:
    done = subprocess.run([sys.executable, "-c", without("simulations")], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "clone the fedmedgen repository" in done.stderr


def test_another_missing_module_is_not_taken_for_missing_studies() -> None:
    done = subprocess.run([sys.executable, "-c", without("hydra")], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "No module named hydra" in done.stderr
    assert "clone the fedmedgen repository" not in done.stderr
