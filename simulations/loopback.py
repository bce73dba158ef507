"""A deployment of three sites on one machine, by the documented commands alone, from `provision` to `release`.

python -m simulations.loopback --out docs/results writes deployment.md: what was typed, what was said, and the time.
"""

import argparse
import datetime
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from string import Template

from simulations.campaigns.deployment import environment, free_port
from simulations.ledger_campaign import commit

SITES = ("north", "south", "west")
PATIENTS = 1000
PROJECT = """\
name: chest-phantoms
server: {names: [localhost, 127.0.0.1], port: $port}
sites:
  - {name: north, patients_declared: 1000, lifetime_epsilon: 12, data_layout: images, data_root: $folder/data/north}
  - {name: south, patients_declared: 1000, lifetime_epsilon: 12, data_layout: images, data_root: $folder/data/south}
  - {name: west, patients_declared: 1000, lifetime_epsilon: 12, data_layout: images, data_root: $folder/data/west}
"""
STUDY = """\
name: first
overrides:
  - study=folder
  - privacy=eps10
  - generator=moments
  - statistics.share=1
  - segmenter.rounds=0
  - data.classes=[normal,opacity]
  - data.mask_classes=[]
  - generator.with_masks=false
  - data.size=[28,28]
  - prior.phantoms=1000
  - emission.count=1000
  - federation.min_sites=3
"""
ROOM_FOR_AUDITS = "s/audit_canaries: 0/audit_canaries: 200/; s/audit_holdout: 0.0/audit_holdout: 0.2/"
LINES_SHOWN = 24


@dataclass
class Terminal:
    """A folder, what was typed in it, and what came."""

    folder: Path
    lines: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def chapter(self, title: str) -> None:
        self.lines += ["", f"## {title}", ""]
        self.seconds[title] = 0.0

    def file(self, name: str, content: str) -> None:
        (self.folder / name).write_text(content)
        self.lines += [f"`{name}`:", "", "```yaml", *self._shown(content), "```", ""]

    def type(self, command: str) -> None:
        """**Raises** `SystemExit` where the command fails."""
        begun = time.monotonic()
        done = subprocess.run(
            command,
            shell=True,
            cwd=self.folder,
            env=_environment(self.folder),
            capture_output=True,
            text=True,
            check=False,
        )
        self._note(command, done.stdout, time.monotonic() - begun)
        if done.returncode:
            raise SystemExit(f"{command}: exit status {done.returncode}\n{done.stdout}\n{done.stderr}")

    def start(self, command: str) -> None:
        self._note(f"{command} &", "", 0.0)
        log = (self.folder / "background.log").open("ab")
        self.running.append(
            subprocess.Popen(command.split(), cwd=self.folder, env=_environment(self.folder), stdout=log, stderr=log)
        )

    def stop(self) -> list[int]:
        for process in self.running:
            process.terminate()
        return [process.wait(60) for process in self.running]

    def _note(self, command: str, said: str, seconds: float) -> None:
        title = next(reversed(self.seconds))
        self.seconds[title] += seconds
        shown = self._shown(said)
        if len(shown) > LINES_SHOWN:
            shown = [*shown[: LINES_SHOWN // 2], "…", *shown[-LINES_SHOWN // 2 :]]
        took = f"    # {seconds:.1f} s" if seconds else ""
        self.lines += ["```console", f"$ {command}{took}", *shown, "```", ""]

    def _shown(self, text: str) -> list[str]:
        return [line.rstrip() for line in text.replace(str(self.folder), "/srv/chest").splitlines()]


def play(terminal: Terminal) -> None:
    """The whole way; the words are those of docs/deployment.md."""
    port, health = free_port(), {name: free_port() for name in ("server", *SITES)}
    run = "kits/server/runs/first"
    terminal.chapter("The project's people write one file, and kits for all")
    terminal.file("project.yaml", Template(PROJECT).substitute(port=port, folder=terminal.folder))
    terminal.type("fedmedgen provision project.yaml --out kits")
    terminal.chapter(
        "Each hospital fills in its policy (here: phantoms for patients, other ports than its neighbours')"
    )
    for seed, site in enumerate(SITES, 1):
        kit = f"kits/sites/{site}"
        terminal.type(f"fedmedgen phantoms --count {PATIENTS} --size 28 --out data --site {site} --seed {seed}")
        terminal.type(f"sed -i '{ROOM_FOR_AUDITS}' {kit}/policy.yaml")
        terminal.type(f"echo 'health_port: {health[site]}' >> {kit}/site.yaml")
        terminal.type(f"fedmedgen ledger create {kit}/policy.yaml")
    terminal.chapter("The server starts; each hospital looks whether it is ready, and joins")
    terminal.type(f"echo 'health_port: {health['server']}' >> kits/server/server.yaml")
    terminal.start("fedmedgen serve kits/server/server.yaml")
    terminal.type(
        f"until curl -s http://127.0.0.1:{health['server']}/health | grep -q '\"ok\": true'; do sleep 1; done"
    )
    for site in SITES:
        terminal.type(f"fedmedgen preflight kits/sites/{site}/site.yaml")
    for site in SITES:
        terminal.start(f"fedmedgen join kits/sites/{site}/site.yaml")
    terminal.chapter("A study")
    terminal.file("kits/server/study.yaml", STUDY)
    terminal.type("fedmedgen submit kits/server/study.yaml")
    terminal.chapter("Each hospital audits what came of it, and hands back its verdict and a copy of its ledger")
    for site in SITES:
        kit = f"kits/sites/{site}"
        terminal.type(f"cp -r {run} at-{site}")
        terminal.type(f"fedmedgen audit at-{site} --site {site} --policy {kit}/policy.yaml")
        terminal.type(
            f"mkdir -p {run}/audits {run}/sites/{site} && cp at-{site}/audits/{site}.json {run}/audits/ && "
            f"cp {kit}/ledger/ledger.jsonl {kit}/ledger/ledger.head {run}/sites/{site}/"
        )
        terminal.type(f"fedmedgen ledger show {kit}/ledger/ledger.jsonl")
    terminal.chapter("What it is worth, on public cases; and the gate")
    for seed, site in enumerate(SITES, 11):  # other patients, of the same machines
        terminal.type(f"fedmedgen phantoms --count 350 --size 28 --out public --site {site} --seed {seed}")
    terminal.type(f"fedmedgen evaluate {run}/synthetic --real public --run {run} --out {run}/metrics.json")
    terminal.type(f"fedmedgen release {run} --out released")
    terminal.type("fedmedgen release --verify released")
    terminal.type("ls released")


def page(terminal: Terminal, exits: list[int]) -> list[str]:
    """The transcript under its figures."""
    rows = [f"| {title} | {seconds:.0f} |" for title, seconds in terminal.seconds.items()]
    return [
        "# A deployment of three sites on one machine",
        "",
        "`python -m simulations.loopback --out docs/results`",
        "",
        f"- {datetime.date.today()}, commit {commit()}, {platform.machine()}, {os.cpu_count()} cores",
        f"- three sites of {PATIENTS} phantom patients, a fifth of them held out, 200 canaries each; epsilon 10",
        f"- exit statuses of serve and the three joins, told to stop: {', '.join(map(str, exits))}",
        "",
        "| step | seconds |",
        "| --- | --- |",
        *rows,
        f"| all | {sum(terminal.seconds.values()):.0f} |",
        *terminal.lines,
    ]


def _environment(folder: Path) -> dict[str, str]:
    found = environment()
    return {
        **found,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{found.get('PATH', '')}",
        "COLUMNS": "120",
        "HOME": str(folder),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        terminal = Terminal(Path(folder))
        try:
            play(terminal)
        finally:
            exits = terminal.stop()
        (given.out / "deployment.md").write_text("\n".join(page(terminal, exits)) + "\n")


if __name__ == "__main__":
    main()
