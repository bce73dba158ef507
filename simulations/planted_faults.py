"""Privacy faults planted one at a time into a copy of the code: each must turn ordinary tests red.

`python -m simulations.planted_faults` writes the table into docs/privacy.md.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import yaml
from rich.progress import track

ROOT = Path(__file__).resolve().parents[1]
LIST = Path(__file__).with_name("planted_faults.yaml")
PAGE = ROOT / "docs" / "privacy.md"
START, END = "<!-- planted faults: written by make campaign-planted -->", "<!-- end of planted faults -->"
TESTS_FAILED = 1  # pytest's exit status; collection and usage errors have others
SECONDS = 600
COPIED = ("fedmedgen", "server", "sites", "simulations", "tests", "docs", "pyproject.toml", "README.md", "Makefile",
          ".gitignore")  # fmt: skip


@dataclass(frozen=True)
class Fault:
    """One line of production code changed so that a claim becomes false, and the ordinary tests that see it."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def plant(self, tree: Path) -> None:
        """Change the line in a copy of the code.

        **Raises** `ValueError` unless the line stands there exactly once.
        """
        path = tree / self.file
        text = path.read_text()
        if text.count(self.old) != 1 or "\n" in self.old or "\n" in self.new or self.old == self.new:
            raise ValueError(f"{self.name}: expected {self.old!r} once in {self.file}; found {text.count(self.old)}")
        path.write_text(text.replace(self.old, self.new))


def faults() -> list[Fault]:
    """The list beside this file."""
    return [Fault(**{**item, "tests": tuple(item["tests"])}) for item in yaml.safe_load(LIST.read_text())]


def copy_of_the_code(folder: Path) -> Path:
    tree = folder / "tree"
    tree.mkdir()
    for name in COPIED:
        source = ROOT / name
        ignored = shutil.ignore_patterns("__pycache__")
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=ignored)
        else:
            shutil.copyfile(source, tree / name)
    return tree


def failing_tests(tree: Path, tests: tuple[str, ...]) -> list[str]:
    """Names of the tests that fail in a copy of the code; none if all pass.

    **Raises** `RuntimeError` if they could not be run.
    """
    words = [sys.executable, "-m", "pytest", "-q", "-rf", "--tb=no", "--maxfail=3", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(words, cwd=tree, env=environment, capture_output=True, text=True, timeout=SECONDS)
    if done.returncode not in (0, TESTS_FAILED):
        raise RuntimeError(f"the tests could not be run: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return re.findall(r"^FAILED (\S+?::[^\s\[]+)", done.stdout, flags=re.MULTILINE)


def red(fault: Fault) -> list[str]:
    """The tests that a planted fault turns red."""
    with tempfile.TemporaryDirectory(prefix="fedmedgen-planted-") as name:
        tree = copy_of_the_code(Path(name))
        fault.plant(tree)
        return sorted(set(failing_tests(tree, fault.tests)))


def green_as_it_stands(all_faults: list[Fault]) -> None:
    """**Raises** `RuntimeError` if one of the tests fails without any fault: then red would prove nothing."""
    with tempfile.TemporaryDirectory(prefix="fedmedgen-planted-") as name:
        tests = tuple(sorted({test for fault in all_faults for test in fault.tests}))
        if failed := failing_tests(copy_of_the_code(Path(name)), tests):
            raise RuntimeError(f"red without any planted fault: {', '.join(failed)}")


def row(fault: Fault, caught: list[str]) -> str:
    names = sorted({name.rpartition("::")[2].removeprefix("test_").replace("_", " ") for name in caught})
    shown = "; ".join(names[:2]) + (f" (and {len(names) - 2} more)" if len(names) > 2 else "")
    cells = [fault.name, f"`{fault.file}`", f"`{_cell(fault.old)}` → `{_cell(fault.new)}`"]
    return f"| {' | '.join([*cells, shown or '**not caught**'])} |"


def _cell(code: str) -> str:
    return code.strip().replace("|", "\\|") or " "


def write_table(page: Path, rows: list[str], known: list[Fault]) -> None:
    """Put rows between the marks on the page, in the list's order; others there stay, if their fault is as it was."""
    head = ["| | fault | file | one line | ordinary tests that turn red |", "| --- | --- | --- | --- | --- |"]
    before, _, rest = page.read_text().partition(START)
    table, _, after = rest.partition(END)
    earlier = re.findall(r"^\| \d+ (\|.*)$", table, flags=re.MULTILINE)
    found = {start: line for line in (*earlier, *rows) for start in [line.rpartition(" | ")[0]]}
    starts = [start for fault in known for start in [row(fault, []).rpartition(" | ")[0]] if start in found]
    lines = [f"| {number} {found[start]}" for number, start in enumerate(starts, 1)]
    page.write_text(f"{before}{START}\n\n" + "\n".join([*head, *lines]) + f"\n\n{END}{after}")


def main() -> int:
    """Plant every fault, or those whose name holds a word; 1 if one is not caught."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="plant only the faults whose name holds this; other rows stay")
    only, known = parser.parse_args().only, faults()
    chosen = [fault for fault in known if only in fault.name]
    if not chosen:
        parser.error(f"--only must be a part of a fault's name in simulations/planted_faults.yaml; got {only!r}")
    green_as_it_stands(chosen)
    found = [(fault, red(fault)) for fault in track(chosen, description="planting")]
    rows = [row(*item) for item in found]
    sys.stdout.write("\n".join(rows) + "\n")
    write_table(PAGE, rows, known)
    missed = [fault.name for fault, caught in found if not caught]
    sys.stdout.write(f"{len(found) - len(missed)} of {len(found)} caught\n")
    return int(bool(missed))


if __name__ == "__main__":
    raise SystemExit(main())
