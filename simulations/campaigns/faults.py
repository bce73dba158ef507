"""Faults of a deployment, each inflicted in the middle of a round: what machines, disks, lines and people do."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

import psutil

from fedmedgen.deployment.studies import ENDED
from fedmedgen.errors import RunError
from simulations.campaigns.deployment import Deployment, wait_for

HONEST, ROGUE, SMALL_DISK = ("north", "south"), "west", "south"
SITES = (*HONEST, ROGUE)
STOPPED_SECONDS = 60.0
ALONE_SECONDS = 30.0
ATTEMPT_SECONDS, CHEAT_SECONDS = 40.0, 600.0
DISK_MB = 64


@dataclass(frozen=True)
class Scene:
    """Where a fault happens: a deployment and its running study; the coins decide what its kind leaves open."""

    deployment: Deployment
    study: str
    coins: Random


Fault = Callable[[Scene], str]  # does it, and says what was done


def site_killed(at: Scene) -> str:
    """SIGKILL of a site and all it started; started again after a while."""
    site, away = at.coins.choice(HONEST), at.coins.choice((0.0, 5.0, 30.0))
    at.deployment.kill(site)
    time.sleep(away)
    at.deployment.start(site)
    return f"{site}, away {away:g} s"


def server_killed(at: Scene) -> str:
    """SIGKILL of the server and all it started; started again after a while."""
    away = at.coins.choice((0.0, 5.0, 30.0))
    at.deployment.kill("server")
    time.sleep(away)
    at.deployment.start("server")
    return f"away {away:g} s"


def keeper_killed(at: Scene) -> str:
    """SIGKILL of `serve` or `join` alone: what it started must end by itself, and be out of its successor's way."""
    name = at.coins.choice(("server", *HONEST))
    kill_alone(at.deployment, name)
    at.deployment.start(name)
    return "serve" if name == "server" else f"join of {name}"


def superlink_killed(at: Scene) -> str:
    """SIGKILL of Flower's SuperLink alone: `serve` has to notice."""
    (link,) = [one for one in at.deployment.family("server") if "fedmedgen.deployment.superlink" in one.cmdline()]
    link.send_signal(signal.SIGKILL)
    return ""


def site_stopped(at: Scene) -> str:
    """SIGSTOP of a site for a minute: a machine that hangs."""
    site = at.coins.choice(HONEST)
    return _stopped(at.deployment, site)


def server_stopped(at: Scene) -> str:
    """SIGSTOP of the server and all it started, for a minute."""
    return _stopped(at.deployment, "server")


def disk_full(at: Scene) -> str:
    """The disk of a site's ledger is full, for a minute."""
    ballast = Path(at.deployment.policy(SMALL_DISK).folder) / "ballast"
    with ballast.open("wb") as file:
        try:
            while True:
                file.write(bytes(1_000_000))
                file.flush()
        except OSError:
            pass
    time.sleep(STOPPED_SECONDS)
    ballast.unlink()
    return SMALL_DISK


def checkpoint_spoiled(at: Scene) -> str:
    """One byte of the last checkpoint changed while the server is down."""
    at.deployment.kill("server")
    spoil_checkpoint(at.deployment, at.study)
    at.deployment.start("server")
    return ""


def line_cut(at: Scene) -> str:
    """The connection of a site breaks, and none comes about for a while."""
    site, away = at.coins.choice(HONEST), at.coins.choice((2.0, 20.0, 60.0))
    at.deployment.lines[site].cut()
    time.sleep(away)
    at.deployment.lines[site].mend()
    return f"{site}, {away:g} s"


def another_bundle(at: Scene) -> str:
    """The server sends other code than the sites have listed, until a site has noted that it refused it."""
    part = Path(at.deployment.server.app) / "sites" / "app.py"
    honest, before = part.read_text(), _bundles_refused(at.deployment)
    at.deployment.kill("server")
    part.write_text(f"{honest}\n# and some code more\n")
    at.deployment.start("server")
    try:
        wait_for(lambda: _bundles_refused(at.deployment) > before, 240, "a refusal of the bundle")
    finally:
        part.write_text(honest)
    return "refused at the sites"


class NotInflictedError(RunError):
    """The study was over before the fault came about: it counts for nothing."""


def _cheating(how: str) -> Fault:
    def fault(at: Scene) -> str:
        at.deployment.twist(ROGUE).write_text(how)
        begun = at.deployment.rounds(at.study) + 1  # of this round its honest reply may have gone
        looked = time.monotonic()

        def replied() -> bool:
            nonlocal looked
            if _said_of(at.deployment, at.study, ROGUE, begun):
                return True
            if at.deployment.study(at.study).status in ENDED:
                raise NotInflictedError(f"{at.study} ended before {ROGUE} had cheated")
            if time.monotonic() - looked > ATTEMPT_SECONDS:
                _start_if_gone(at.deployment, ROGUE)
                looked = time.monotonic()
            return False

        try:
            wait_for(replied, CHEAT_SECONDS, "a round of a cheat")
        finally:
            at.deployment.twist(ROGUE).write_text("")
        return f"{ROGUE}: {', '.join(sorted(_said_of(at.deployment, at.study, ROGUE, begun)))}"

    fault.__doc__ = f"A site whose replies are twisted: {how}."
    return fault


def _start_if_gone(deployment: Deployment, rogue: str) -> None:
    """No `join` keeps a cheat's program, and Flower gives up in a process that stays; the server sees that late."""
    if deployment.health("server").get("sites", {}).get(rogue) != "online":
        deployment.kill(rogue)
        deployment.start(rogue)


FAULTS: dict[str, Fault] = {
    "site killed": site_killed,
    "SuperLink killed": superlink_killed,
    "site sends NaN": _cheating("nan"),
    "line cut": line_cut,
    "server killed": server_killed,
    "site stopped for a minute": site_stopped,
    "site sends wrong shapes": _cheating("shapes"),
    "checkpoint spoiled": checkpoint_spoiled,
    "disk full at a site": disk_full,
    "site claims another's name": _cheating("identity"),
    "server stopped for a minute": server_stopped,
    "site replays an old reply": _cheating("replay"),
    "server sends another bundle": another_bundle,
    "site sends enormous weights": _cheating("enormous"),
    "serve or join killed alone": keeper_killed,
}


def kill_alone(deployment: Deployment, name: str) -> None:
    """SIGKILL of `serve` or `join` itself; returns when all that it had started has ended by itself.

    **Raises** `RunError` where something goes on.
    """
    _, *started = deployment.family(name)
    keeper = deployment.running.pop(name)
    keeper.kill()
    keeper.wait()

    def ended() -> bool:
        return not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in started)

    wait_for(ended, ALONE_SECONDS, f"the end of all that {name} had started")


def spoil_checkpoint(deployment: Deployment, study: str) -> None:
    """Change one byte of the last checkpoint's arrays, as a bad disk would."""
    out = Path(deployment.study(study).out)
    words = json.loads((out / "checkpoint.json").read_text())
    file = out / "checkpoint" / words["arrays"]
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)


@contextmanager
def small_disk(place: Path) -> Iterator[None]:
    """A small disk of its own for a folder.

    **Raises** `RunError` where this user may not mount one.
    """
    place.mkdir(parents=True, exist_ok=True)
    words = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "fedmedgen", str(place)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RunError(f"a full disk is tried on a small one of its own, which needs root: {done.stderr.strip()}")
    try:
        yield
    finally:
        os.sync()
        subprocess.run(["umount", "--lazy", str(place)], check=False)


def _stopped(deployment: Deployment, name: str) -> str:
    family = deployment.family(name)
    for one in family:
        one.suspend()
    time.sleep(STOPPED_SECONDS)
    for one in family:
        if one.is_running():
            one.resume()
    return name


def _bundles_refused(deployment: Deployment) -> int:
    lines = [line for site in HONEST for line in deployment.security(site)]
    return sum(line.get("what") == "bundle" and line["event"] == "refused" for line in lines)


def _said_of(deployment: Deployment, study: str, site: str, since: int) -> set[str]:
    """What the server's table says of a site's replies after a round."""
    rows = [row for row in deployment.table(study) if row["site"] == site and int(row["round"]) > since]
    return {f"{row['status']} {row['reason']}".strip() for row in rows}
