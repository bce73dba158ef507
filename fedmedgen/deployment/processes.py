"""Processes and their descendants: started again with back-off, logged to file and screen, and ended together."""

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from logging.handlers import RotatingFileHandler
from pathlib import Path

import psutil

from fedmedgen.deployment import bound

logger = logging.getLogger(__name__)

LOG_BYTES, LOG_FILES = 10_000_000, 5
LOOK_SECONDS = 0.5
STEADY_SECONDS = 60.0  # that a program must run for its back-off to start afresh


@dataclass
class Family:
    """A process and its descendants: their memory, and their end."""

    root: psutil.Process
    known: set[psutil.Process] = field(default_factory=set)  # of equal number, two differ by when they were created
    peak_mb: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def look(self) -> list[psutil.Process]:
        """Note every descendant alive now and the memory of all together, and forget who is gone; who is left."""
        with self._lock:
            with suppress(psutil.Error):
                self.known |= {self.root, *self.root.children(recursive=True)}
            self.known = {process for process in self.known if process.is_running()}
            self.peak_mb = max(self.peak_mb, sum(_private_mb(process) for process in self.known))
            return list(self.known)

    def end(self) -> None:
        """Ask every process of the family that is still there to stop, then stop it."""
        alive = self.look()
        for process in alive:
            with suppress(psutil.Error):
                process.terminate()
        _, stubborn = psutil.wait_procs(alive, timeout=10)
        for process in stubborn:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(stubborn, timeout=5)


def _private_mb(process: psutil.Process) -> float:
    """Memory of a process in MB, pages that it shares with others left out; 0 once it is gone."""
    with suppress(psutil.Error):
        memory = process.memory_info()
        return float(memory.rss - getattr(memory, "shared", 0)) / 2**20
    return 0.0


@dataclass(frozen=True)
class Program:
    """What is started, where, and under which environment."""

    words: Sequence[str]
    folder: Path
    environment: Mapping[str, str]

    @property
    def bound(self) -> list[str]:
        """The words that start it so that it ends when this process does, even by SIGKILL: see `bound`."""
        return [sys.executable, "-I", "-S", bound.__file__, str(os.getpid()), *self.words]


class Kept:
    """A program that is started again whenever it ends by itself, later and later, until it is told to stop.

    `last_words` are of a line after which the program does nothing more, whether its process ends or not.
    """

    def __init__(self, program: Program, log: Path, *, first: float, longest: float, last_words: str = "") -> None:
        self.program, self.first, self.longest, self.last_words = program, first, longest, last_words
        self.restarts, self.status = 0, "starting"
        self.started = threading.Event()  # set at each start, for whoever has to do something then
        self._stop = threading.Event()
        self._log = _log_to(log)
        self._thread = threading.Thread(target=self._keep, name=program.words[0], daemon=True)
        self._family: Family | None = None
        self._process: subprocess.Popen[str] | None = None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the program and all that it started; returns once they are gone."""
        self._stop.set()
        if self._family is not None:
            self._family.end()
        self._thread.join(timeout=30)

    def _keep(self) -> None:
        wait = self.first
        while not self._stop.is_set():
            begun = time.monotonic()
            code = self._run_once()
            if self._stop.is_set():
                break
            self.status = f"ended with exit status {code}"
            wait = self.first if time.monotonic() - begun > STEADY_SECONDS else wait
            self._log.warning("%s %s; starting it again in %g s", self.program.words[0], self.status, wait)
            self._stop.wait(wait)
            wait, self.restarts = min(2 * wait, self.longest), self.restarts + 1
        self.status = "stopped"

    def _run_once(self) -> int:
        try:
            self._process = subprocess.Popen(
                self.program.bound, cwd=self.program.folder, env=dict(self.program.environment), text=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace",
            )  # fmt: skip
        except OSError as error:
            self._log.error("%s can't be started: %s", self.program.words[0], error)
            return 127
        self._family, self.status = Family(psutil.Process(self._process.pid)), "running"
        if self._stop.is_set():  # stop() may have looked before there was a family
            self._family.end()
        self.started.set()
        watch = threading.Thread(target=self._copy, args=(self._process, self._family), daemon=True)
        watch.start()
        while (code := _ended(self._process)) is None:
            self._family.look()  # a child is found through its parent, while that lives
        self._family.end()  # what it left behind would hold its port
        watch.join(timeout=5)
        return code

    def _copy(self, process: subprocess.Popen[str], family: Family) -> None:
        """Every line the program says, to file and screen."""
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                self._log.info("%s", line.rstrip())
                if self.last_words and self.last_words in line:
                    threading.Thread(target=family.end, daemon=True).start()


def _ended(process: subprocess.Popen[str]) -> int | None:
    """The exit status, or None after a while of waiting for it."""
    try:
        return process.wait(timeout=LOOK_SECONDS)
    except subprocess.TimeoutExpired:
        return None


def _log_to(path: Path) -> logging.Logger:
    path.parent.mkdir(parents=True, exist_ok=True)
    found = logging.getLogger(f"{__name__}.{path}")
    found.setLevel(logging.INFO)
    found.propagate = False
    if not found.handlers:
        to_file = RotatingFileHandler(path, maxBytes=LOG_BYTES, backupCount=LOG_FILES)
        to_file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        to_screen = logging.StreamHandler()
        to_screen.setFormatter(logging.Formatter("%(message)s"))
        found.handlers = [to_file, to_screen]
    return found


def until(good: Callable[[], bool], *, seconds: float, stop: threading.Event | None = None) -> bool:
    """Wait for something, in vain at most so many seconds or until `stop`; whether it came about."""
    end, stop = time.monotonic() + seconds, stop or threading.Event()
    while time.monotonic() < end and not stop.is_set():
        if good():
            return True
        stop.wait(0.3)
    return False
