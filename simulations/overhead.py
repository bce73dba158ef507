"""Where the time of a round goes in a deployment of real processes: docs/results/overhead.md.

python -m simulations.overhead --sites 2 4 8 --out docs/results
"""

import argparse
import datetime
import os
import platform
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from simulations.campaigns.deployment import Deployment
from simulations.ledger_campaign import commit

ROUNDS = 5
LOOK_SECONDS = 0.1
PARTS = {  # a word of a process's command line, and what it is
    "flwr-clientapp": "a site's app, one process a message",
    "flower-supernode": "SuperNodes",
    "flower-superexec": "Flower's starters of processes",
    "fedmedgen.deployment.superlink": "SuperLink",
    "flwr-serverapp": "the server's app",
    "serve": "`fedmedgen serve`",
    "join": "`fedmedgen join`",
    "flwr": "Flower's command line, asked by `serve`",
}


@dataclass
class Seen:
    """One process, as far as it was seen."""

    part: str
    first: float
    last: float
    before: float  # processor time when it was first seen
    cpu: float = 0.0


@dataclass
class Watch:
    """Looks at every process of a deployment, again and again, until it is stopped."""

    deployment: Deployment
    seen: dict[int, Seen] = field(default_factory=dict)
    stopped: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        while not self.stopped.wait(LOOK_SECONDS):
            for name in list(self.deployment.running):
                for process in self.deployment.family(name):
                    with suppress(psutil.Error):
                        self._look(process)

    def _look(self, process: psutil.Process) -> None:
        now, cpu = time.monotonic(), float(sum(process.cpu_times()[:2]))
        known = self.seen.setdefault(process.pid, Seen(_part(process), now, now, cpu))
        known.last, known.cpu = now, cpu


def _part(process: psutil.Process) -> str:
    words = [Path(word).name for word in process.cmdline()]
    return next((part for part in PARTS if part in words), "other")


@dataclass(frozen=True)
class Found:
    """Of one number of sites: seconds a round, of an app's life, of its processor time, and those of each part."""

    sites: int
    round: float
    life: float
    own: float
    by_part: dict[str, float]


def measured(count: int) -> Found:
    """Run one study, and watch it from its second round on."""
    sites = tuple(f"site-{number}" for number in range(1, count + 1))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        deployment = Deployment(Path(folder), sites=sites)
        deployment.provision()
        watch = Watch(deployment)
        try:
            deployment.start("server", *sites)
            deployment.wait_until_online(*sites)
            quorum = f"federation.min_sites={count}"
            deployment.submit("study", f"rounds={ROUNDS}", quorum, "federation.round_seconds=600")
            deployment.wait_round("study", 1)
            begun = time.monotonic()
            threading.Thread(target=watch.run, daemon=True).start()
            deployment.wait_round("study", ROUNDS)
            seconds = (time.monotonic() - begun) / (ROUNDS - 1)
            watch.stopped.set()
            deployment.wait_end("study")
        finally:
            deployment.stop()
            deployment.kill_all()
    return _summed(count, seconds, list(watch.seen.values()))


def _summed(count: int, seconds: float, seen: Sequence[Seen]) -> Found:
    apps = [one for one in seen if one.part == "flwr-clientapp"]
    by_part = {part: sum(one.cpu - one.before for one in seen if one.part == part) / (ROUNDS - 1) for part in PARTS}
    life = sum(one.last - one.first for one in apps) / len(apps)
    return Found(count, seconds, life, sum(one.cpu for one in apps) / len(apps), by_part)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    given = parser.parse_args()
    (given.out / "overhead.md").write_text("\n".join(page([measured(count) for count in given.sites])) + "\n")


def page(found: Sequence[Found]) -> list[str]:
    """Rounds, and processor time by part."""
    counts = [str(one.sites) for one in found]
    return [
        "# Where the time of a round goes",
        "",
        f"`python -m simulations.overhead --sites {' '.join(counts)} --out docs/results`",
        "",
        f"- {datetime.date.today()}, commit {commit()}, {platform.machine()}, {os.cpu_count()} cores for all of it",
        "- private rounds of next to no work (16x16, one step), so that what is left is overhead; mean of "
        f"{ROUNDS - 1} rounds",
        "",
        "| sites | seconds a round | of them a site's app lives | its processor time |",
        "| --- | --- | --- | --- |",
        *[f"| {one.sites} | {one.round:.1f} | {one.life:.1f} | {one.own:.1f} |" for one in found],
        "",
        "Processor seconds a round, all processes of a kind together:",
        "",
        f"| {' | '.join(['part', *(f'{count} sites' for count in counts)])} |",
        f"|{' --- |' * (len(counts) + 1)}",
        *[f"| {PARTS[part]} | {' | '.join(f'{one.by_part[part]:.1f}' for one in found)} |" for part in PARTS],
    ]


if __name__ == "__main__":
    main()
