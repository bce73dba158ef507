"""Programs that are kept running: restarted with back-off, logged, ended with all that they started."""

import sys
import time
from pathlib import Path

import psutil
import pytest

from fedmedgen.deployment.processes import Family, Kept, Program, until


def program(folder: Path, code: str) -> Program:
    return Program([sys.executable, "-c", code], folder, {})


def kept(folder: Path, code: str, *, first: float = 0.05, longest: float = 0.2) -> Kept:
    return Kept(program(folder, code), folder / "logs" / "program.log", first=first, longest=longest)


def test_a_program_that_ends_is_started_again_later_and_later(tmp_path: Path) -> None:
    one = kept(tmp_path, "import time; print('here', time.time(), flush=True); raise SystemExit(3)")
    one.start()
    assert until(lambda: one.restarts >= 4, seconds=30)
    one.stop()
    text = (tmp_path / "logs" / "program.log").read_text()
    waits = [line.split("again in ")[1] for line in text.splitlines() if "again in" in line]
    assert waits[:4] == ["0.05 s", "0.1 s", "0.2 s", "0.2 s"]
    assert text.count("here") >= 4
    assert "exit status 3" in text
    assert one.status == "stopped"


def test_stopping_ends_all_that_was_started(tmp_path: Path) -> None:
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])"
    one = kept(tmp_path, child)
    one.start()
    assert until(lambda: bool(one._family and one._family.root.children(recursive=True)), seconds=30)
    assert one._family is not None
    family = [one._family.root, *one._family.root.children(recursive=True)]
    one.stop()
    assert not any(process.is_running() for process in family)
    assert not one.running


def test_what_a_dead_program_left_behind_is_ended_before_it_starts_again(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, time; "
        "print('left', subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']).pid, flush=True); "
        "time.sleep(2)"
    )
    one = kept(tmp_path, code, first=0.1)
    one.start()
    assert until(lambda: one.restarts >= 1, seconds=30)
    one.stop()
    pids = [
        int(line.split()[-1]) for line in (tmp_path / "logs" / "program.log").read_text().splitlines() if "left" in line
    ]
    assert pids
    assert not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids)


def test_a_program_that_is_not_there_is_said_and_tried_again(tmp_path: Path) -> None:
    one = Kept(Program([str(tmp_path / "none")], tmp_path, {}), tmp_path / "log", first=0.05, longest=0.05)
    one.start()
    assert until(lambda: one.restarts >= 2, seconds=30)
    one.stop()
    assert "can't be started" in (tmp_path / "log").read_text()


def test_a_family_that_is_gone_has_no_memory_and_no_end() -> None:
    process = psutil.Popen([sys.executable, "-c", ""])
    family = Family(process)
    process.wait()
    family.end()
    assert family.peak_mb == pytest.approx(0, abs=1e-9)


def test_waiting_ends_with_its_time() -> None:
    start = time.monotonic()
    assert not until(lambda: False, seconds=0.5)
    assert time.monotonic() - start < 5
