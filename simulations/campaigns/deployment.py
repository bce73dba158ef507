"""A deployment on loopback, of real processes: kits by `provision`, then `serve`, `join`, `submit` as by a person."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import psutil
import yaml

from fedmedgen.deployment.project import ServerConfig
from fedmedgen.deployment.serving import studies_folder
from fedmedgen.deployment.studies import ENDED, StudyRecord, read
from fedmedgen.errors import RunError
from fedmedgen.federation.policy import SitePolicy
from fedmedgen.settings import Settings
from simulations.campaigns.proxy import Line

PATIENTS = 24
TINY = (
    "study=demo", "smoke=true", "data.size=[16,16]", "segmenter.rounds=0", "privacy.generator_steps=1",
    "emission.count=4", "federation.join_seconds=300", "federation.round_seconds=60",
)  # fmt: skip
HEALTHY_SECONDS = 240.0


@dataclass
class Deployment:
    """Kits, and the processes that were started from them."""

    folder: Path
    sites: tuple[str, ...] = ("north", "south", "west")
    rogues: tuple[str, ...] = ()  # sites that cheat as their TWIST file says
    lines: dict[str, Line] = field(default_factory=dict)  # to the server, by site
    running: dict[str, psutil.Popen] = field(default_factory=dict)  # "server", or a site

    def provision(self) -> None:
        """Kits as a person would have filled them in: phantoms for patients, declared figures, ledgers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        project = {
            "name": "loopback",
            "server": {"names": ["127.0.0.1"], "port": free_port()},
            "sites": [
                {"name": name, "patients_declared": 30, "labelled_declared": 30, "lifetime_epsilon": 100.0,
                 "data_layout": "images", "data_root": str(self.data(name))}
                for name in self.sites
            ],
        }  # fmt: skip
        (self.folder / "project.yaml").write_text(yaml.safe_dump(project))
        self.command("provision", "project.yaml", "--out", "kits")
        _set(self.kit("server") / "server.yaml", health_port=free_port(), restart_seconds=0.5)
        for number, name in enumerate(self.sites):
            self.command(
                "phantoms", "--count", str(PATIENTS), "--out", str(self.data(name).parent), "--seed", str(number)
            )
            line = self.lines[name] = Line(self.server.port)
            _set(
                self.kit(name) / "site.yaml",
                health_port=free_port(), restart_seconds=0.5, server=f"127.0.0.1:{line.port}",
            )  # fmt: skip
            self.command("ledger", "create", str(self.kit(name) / "policy.yaml"))

    def data(self, site: str) -> Path:
        return self.folder / "data" / site / "site-1"

    def kit(self, name: str) -> Path:
        kits = self.folder / "kits"
        return kits / "server" if name == "server" else kits / "sites" / name

    @property
    def server(self) -> ServerConfig:
        return ServerConfig.read(self.kit("server") / "server.yaml")

    def policy(self, site: str) -> SitePolicy:
        return SitePolicy.read(self.kit(site) / "policy.yaml")

    def command(self, *words: str) -> str:
        """What a command of the program says.

        **Raises** `RunError` where it fails.
        """
        done = subprocess.run(
            [_program(), *words], cwd=self.folder, env=environment(), capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RunError(f"fedmedgen {' '.join(words)}: exit status {done.returncode}: {done.stderr[-2000:]}")
        return done.stdout

    def start(self, *names: str) -> None:
        """Start the server or sites; returns when the server is healthy."""
        for name in names:
            if name in self.rogues:  # nothing starts Flower's own program again, if it isn't let in
                wait_for(lambda: name in self.health("server").get("sites", ()), HEALTHY_SECONDS, f"{name} let in")  # noqa: B023
            with (self.folder / f"{name}.log").open("a") as log:
                self.running[name] = psutil.Popen(
                    self._words(name), cwd=self.kit(name), env=environment(), stdout=log, stderr=log
                )
        if "server" in names:
            wait_for(lambda: bool(self.health("server").get("ok")), HEALTHY_SECONDS, "the server's health")

    def _words(self, name: str) -> list[str]:
        if name == "server":
            return [_program(), "serve", "server.yaml"]
        if name not in self.rogues:
            return [_program(), "join", "site.yaml"]
        kit = self.kit(name)
        options = ["--root-certificates", str(kit / "ca.crt"), "--superlink", f"127.0.0.1:{self.lines[name].port}",
                   "--auth-supernode-private-key", str(kit / "site.key"), "--port", str(free_port())]  # fmt: skip
        rogue = Path(__file__).with_name("rogue.py")
        return [sys.executable, "-P", str(rogue), str(self.twist(name)), "policy.yaml", *options]

    def twist(self, site: str) -> Path:
        """The file that says how a rogue cheats."""
        return self.folder / f"{site}.twist"

    def health(self, name: str) -> dict[str, Any]:
        """What a health endpoint says; nothing where there is none."""
        file = "server.yaml" if name == "server" else "site.yaml"
        port = yaml.safe_load((self.kit(name) / file).read_text())["health_port"]
        with suppress(OSError, ValueError), urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return dict(json.loads(answer.read()))
        return {}

    def wait_until_online(self, *sites: str, seconds: float = HEALTHY_SECONDS) -> None:
        def online() -> bool:
            there = self.health("server").get("sites", {})
            return all(there.get(site) == "online" for site in sites)

        wait_for(online, seconds, f"{', '.join(sites)} online")

    def family(self, name: str) -> list[psutil.Process]:
        """A program and all that it has started, as far as it can be found."""
        root = self.running[name]
        with suppress(psutil.Error):
            return [root, *root.children(recursive=True)]
        return [root]

    def send(self, name: str, number: int) -> None:
        """A signal to a program and all that it has started."""
        for process in self.family(name):
            with suppress(psutil.Error):
                process.send_signal(number)

    def kill(self, name: str) -> None:
        """SIGKILL, as a machine that loses its power."""
        family = self.family(name)
        self.send(name, signal.SIGKILL)
        psutil.wait_procs(family, timeout=20)
        self.running.pop(name).wait()

    def kill_all(self) -> None:
        for name in list(self.running):
            self.kill(name)

    def stop(self) -> dict[str, int]:
        """Ask every program to end; its exit status by name."""
        for process in self.running.values():
            process.terminate()
        status = {name: int(process.wait(60)) for name, process in self.running.items()}
        self.running.clear()
        return status

    def submit(self, name: str, *words: str) -> None:
        """Hand a study over."""
        file = self.kit("server") / f"{name}.yaml"
        file.write_text(yaml.safe_dump({"name": name, "overrides": [*TINY, *words]}))
        self.command("submit", str(file), "--no-wait")

    def study(self, name: str) -> StudyRecord:
        return read(studies_folder(self.server) / f"{name}.json")

    def rounds(self, name: str) -> int:
        """Finished rounds of a study, by its checkpoint."""
        path = Path(self.study(name).out) / "checkpoint.json"
        with suppress(OSError, ValueError):
            return int(json.loads(path.read_text())["round"])
        return 0

    def table(self, name: str) -> list[dict[str, str]]:
        """The rows of a study's `rounds.csv`."""
        file = Path(self.study(name).out) / "rounds.csv"
        return list(csv.DictReader(file.read_text().splitlines())) if file.is_file() else []

    def wait_round(self, name: str, number: int, seconds: float = 600.0) -> None:
        wait_for(lambda: self.rounds(name) >= number, seconds, f"round {number} of {name}")

    def wait_end(self, name: str, seconds: float = 900.0) -> StudyRecord:
        wait_for(lambda: self.study(name).status in ENDED, seconds, f"the end of {name}")
        return self.study(name)

    def settings(self, name: str) -> Settings:
        return Settings.from_mapping(yaml.safe_load((Path(self.study(name).out) / "settings.yaml").read_text()))

    def security(self, name: str) -> list[dict[str, Any]]:
        """Lines of the security log of the server or a site."""
        folder = Path(self.server.state) if name == "server" else Path(self.policy(name).folder)
        file = folder / "security.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def environment() -> dict[str, str]:
    """One thread for each program: several share a machine here."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(good: Callable[[], bool], seconds: float, what: str) -> None:
    """**Raises** `RunError` where it doesn't come about in time."""
    end = time.monotonic() + seconds
    while not good():
        if time.monotonic() > end:
            raise RunError(f"{what} did not come about within {seconds:g} s")
        time.sleep(0.3)


def _program() -> str:
    return str(Path(sys.executable).parent / "fedmedgen")


def _set(file: Path, **words: object) -> None:
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **words}, sort_keys=False))
