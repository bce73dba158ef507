"""The size of rooms and functions: what keeps the house readable."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CODE = ("fedmedgen", "sites", "server", "simulations")
LONGEST_FILE = 250
LONGEST_FUNCTION = 50
MOST_ARGUMENTS = 7


def files() -> Iterator[Path]:
    for room in CODE:
        yield from sorted((ROOT / room).rglob("*.py"))


def functions(path: Path) -> Iterator[ast.FunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            yield node


def test_no_file_is_longer_than_a_reader_can_hold() -> None:
    long = {
        str(path.relative_to(ROOT)): n for path in files() if (n := len(path.read_text().splitlines())) > LONGEST_FILE
    }
    assert not long


def test_no_function_is_longer_than_a_screen() -> None:
    long = {
        f"{path.relative_to(ROOT)}:{node.name}": n
        for path in files()
        for node in functions(path)
        if (n := (node.end_lineno or node.lineno) - node.lineno + 1) > LONGEST_FUNCTION
    }
    assert not long


def test_no_function_takes_more_arguments_than_a_caller_can_order() -> None:
    many = {
        f"{path.relative_to(ROOT)}:{node.name}": n
        for path in files()
        for node in functions(path)
        if (n := len([a for a in node.args.args if a.arg not in ("self", "cls")])) > MOST_ARGUMENTS
    }
    assert not many


def test_every_file_says_what_it_is_for() -> None:
    silent = [str(path.relative_to(ROOT)) for path in files() if not ast.get_docstring(ast.parse(path.read_text()))]
    assert not silent


def test_no_room_is_a_drawer_for_everything() -> None:
    drawers = {"utils", "helpers", "common", "base", "manager"}
    assert not [path.name for path in files() if path.stem in drawers]
