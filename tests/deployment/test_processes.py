"""Programs that are kept running: restarted with back-off, logged, ended with all that they started."""

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from fedmedgen.deployment import processes
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


def test_a_program_that_has_said_its_last_words_is_started_again_though_its_process_stays(tmp_path: Path) -> None:
    code = "import time; print('12:00 Giving up for good', flush=True); time.sleep(600)"
    log = tmp_path / "logs" / "program.log"
    one = Kept(program(tmp_path, code), log, first=0.05, longest=0.2, last_words="Giving up")
    one.start()
    assert until(lambda: one.restarts >= 2, seconds=30)
    one.stop()
    assert not one.running


def test_a_program_that_is_not_there_is_said_and_tried_again(tmp_path: Path) -> None:
    one = Kept(Program([str(tmp_path / "none")], tmp_path, {}), tmp_path / "log", first=0.05, longest=0.05)
    one.start()
    assert until(lambda: one.restarts >= 2, seconds=30)
    one.stop()
    assert "can't be started" in (tmp_path / "log").read_text()


KEEPER = """
import sys, threading
from pathlib import Path
from fedmedgen.deployment.processes import Kept, Program
words = [sys.executable, "-c", "import time; time.sleep(600)"]
Kept(Program(words, Path(sys.argv[1]), {}), Path(sys.argv[1]) / "log", first=9, longest=9).start()
threading.Event().wait()
"""


def gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == "zombie"


def test_a_program_ends_with_the_one_that_keeps_it_even_where_that_is_killed(tmp_path: Path) -> None:
    keeper = psutil.Popen([sys.executable, "-c", KEEPER, str(tmp_path)], cwd=Path(__file__).parents[2])

    def started() -> bool:
        return any("time.sleep(600)" in " ".join(one.cmdline()[:3]) for one in keeper.children())

    assert until(started, seconds=60)
    (child,) = keeper.children()
    keeper.send_signal(signal.SIGKILL)
    keeper.wait()
    assert until(lambda: gone(child), seconds=10)


def test_a_program_whose_starter_died_before_the_kernel_knew_does_not_run(tmp_path: Path) -> None:
    words = Program([sys.executable, "-c", "print('ran')"], tmp_path, {}).bound
    other = [str(os.getppid()) if word == str(os.getpid()) else word for word in words]
    done = subprocess.run(other, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "is gone" in done.stderr


def test_stopping_while_the_program_is_being_started_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, plain = kept(tmp_path, "import time; time.sleep(600)"), subprocess.Popen

    def just_then(*words: Any, **named: Any) -> Any:
        one._stop.set()  # as stop() does, which finds no family to end yet
        return plain(*words, **named)

    monkeypatch.setattr(processes.subprocess, "Popen", just_then)
    one.start()
    one._thread.join(30)
    assert not one._thread.is_alive()
    assert not one.running


def test_a_family_that_is_gone_has_no_memory_and_no_end() -> None:
    process = psutil.Popen([sys.executable, "-c", ""])
    family = Family(process)
    process.wait()
    family.end()
    assert family.peak_mb == pytest.approx(0, abs=1e-9)


def sleeper() -> psutil.Popen:
    return psutil.Popen([sys.executable, "-c", "import time; time.sleep(600)"])


class Root:
    """A process that lives on, with the children that it is given."""

    numbers = itertools.count(10**7)  # above any that Linux gives

    def __init__(self, *children: Any) -> None:
        self.among, self.pid = list(children), next(self.numbers)

    def children(self, recursive: bool) -> list[Any]:
        return self.among

    def is_running(self) -> bool:
        return True

    def memory_info(self) -> Any:
        raise psutil.AccessDenied

    def terminate(self) -> None:
        self.is_running = lambda: False  # type: ignore[method-assign]

    def wait(self, timeout: float | None = None) -> int:
        return 0


def test_who_has_ended_is_forgotten() -> None:
    children = [psutil.Popen([sys.executable, "-c", ""]) for _ in range(3)]
    family = Family(Root(*children))  # type: ignore[arg-type]
    family.look()
    for child in children:
        child.wait()
    family.root.among = []  # type: ignore[attr-defined]
    family.look()
    assert len(family.known) == 1


def test_a_process_that_has_the_number_of_one_that_ended_is_another() -> None:
    child = sleeper()
    try:
        earlier = psutil.Process(child.pid)
        earlier._ident = (child.pid, 1.0)  # as of one that was created at another time
        family = Family(Root(earlier))  # type: ignore[arg-type]
        family.look()
        family.root.among = [psutil.Process(child.pid)]  # type: ignore[attr-defined]
        family.end()
        assert not child.is_running()
    finally:
        if child.is_running():
            child.kill()
            child.wait()


def test_two_threads_may_look_at_once() -> None:
    """`stop()` ends the family while the program's own thread looks at it."""

    class Busy(Root):
        other: threading.Thread | None = None

        def memory_info(self) -> Any:
            if self.other is None:
                self.other = threading.Thread(target=family.look)
                root.among = [self, *(Root() for _ in range(100))]
                self.other.start()
                self.other.join(0.5)
            raise psutil.AccessDenied

    busy = Busy()
    root = Root(busy, Root())
    family = Family(root)  # type: ignore[arg-type]
    assert len(family.look()) == 3
    assert busy.other is not None
    busy.other.join(10)
    assert not busy.other.is_alive()
    assert len(family.known) == 103


def test_waiting_ends_with_its_time() -> None:
    start = time.monotonic()
    assert not until(lambda: False, seconds=0.5)
    assert time.monotonic() - start < 5


WAITS = """
import os, subprocess, sys
child = "import threading\\n{first}\\nfrom flwr.supercore.app_utils import start_parent_process_monitor\\n"
child += "start_parent_process_monitor({{parent}})\\nprint('up', flush=True)\\nthreading.Event().wait()"
subprocess.run([sys.executable, "-c", child.format(parent=os.getpid())])
"""
ENDS = "from fedmedgen.deployment.bound import end_with_parent; end_with_parent(0.5)"


@pytest.mark.parametrize(("first", "ends"), [(ENDS, True), ("", False)], ids=["ours", "flower's own alone"])
def test_an_app_process_that_waits_for_its_threads_ends_with_what_started_it(first: str, ends: bool) -> None:
    """Flower's own watch raises SIGINT where a main thread that waits misses it; once that is mended, ours can go."""
    words = [sys.executable, "-c", WAITS.format(first=first)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "up\n"
        (child,) = psutil.Process(parent.pid).children()
        parent.kill()
        gone, _ = psutil.wait_procs([child], timeout=10 if ends else 3)
        if not ends:
            child.kill()
    assert bool(gone) == ends
