"""Studies on a deployment of real processes under fault after fault: docs/results/faults.md and .csv.

python -m simulations.fault_campaign --studies 9 --out docs/results
"""

import argparse
import csv
import datetime
import os
import platform
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any

from rich.console import Console

from fedmedgen.errors import RunError
from simulations.campaigns import accounts, faults
from simulations.campaigns.deployment import Deployment
from simulations.grid_page import span
from simulations.ledger_campaign import commit

FAULTS_A_STUDY = 5
ROUNDS = 9 * FAULTS_A_STUDY  # a cheat may be away for two dozen
LONGEST_DELAY = 15.0  # seconds after a round has begun
HANG_SECONDS = 1800.0
WRONGS = tuple(accounts.HOW)
Row = dict[str, Any]
COLUMNS = (
    "date", "commit", "seed", "study", "fault", "kind", "how", "round", "seconds_to_next_round",
    "study_status", "study_rounds", "study_seconds", *WRONGS, "hangs", "left_behind",
)  # fmt: skip


def campaign(studies: int, seed: int, out: Path, console: Console) -> list[Row]:
    """The rows of all faults; studies that OUT's table holds for this seed are not run again."""
    table = out / "faults.csv"
    rows = _known(table, seed)
    done = {int(row["study"]) for row in rows}
    for number in range(studies):
        if number not in done:
            fresh = one_study(number, seed, console)
            rows += fresh
            write_rows(table, rows)
    return rows


def one_study(number: int, seed: int, console: Console) -> list[Row]:
    """A deployment of its own, one study, and its faults; all processes have ended by the end."""
    coins, kinds = Random(f"{seed} {number}"), list(faults.FAULTS)
    with ExitStack() as cleanup:
        folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        deployment = Deployment(folder, sites=faults.SITES, rogues=(faults.ROGUE,))
        cleanup.enter_context(faults.small_disk(deployment.kit(faults.SMALL_DISK) / "ledger"))
        deployment.provision()
        cleanup.callback(deployment.kill_all)
        deployment.start("server", *faults.SITES)
        deployment.wait_until_online(*faults.SITES)
        name, begun = f"study-{number}", time.monotonic()
        deployment.submit(name, f"rounds={ROUNDS}", "federation.min_sites=1")
        rows = []
        for fault in range(FAULTS_A_STUDY):
            kind = kinds[(number * FAULTS_A_STUDY + fault) % len(kinds)]
            row = _inflicted(deployment, name, kind, coins, console)
            rows += [row] if row else []
            if row is None or row["hangs"]:
                break
        ended = _ended(deployment, name, begun)
    known = {"date": f"{datetime.date.today()}", "commit": commit(), "seed": seed, "study": number}
    return [
        {**known, "fault": fault, **row, **ended, "hangs": row["hangs"] or ended["hangs"]}
        for fault, row in enumerate(rows)
    ]


def _inflicted(deployment: Deployment, study: str, kind: str, coins: Random, console: Console) -> Row | None:
    try:
        deployment.wait_round(study, deployment.rounds(study) + 1)
        time.sleep(coins.uniform(0, LONGEST_DELAY))
        reached, begun = deployment.rounds(study), time.monotonic()
        how = faults.FAULTS[kind](faults.Scene(deployment, study, coins))
        if deployment.rounds(study) <= reached:
            deployment.wait_round(study, reached + 1)
        seconds = round(time.monotonic() - begun, 1)
    except faults.NotInflictedError as error:
        console.print(f"{study}, {kind}: {error}")
        return None
    except RunError as error:
        console.print(f"{study}, {kind}: {error}")
        return {"kind": kind, "how": str(error), "round": deployment.rounds(study), "hangs": 1}
    console.print(f"{study}, round {reached}: {kind} ({how}); the next round ended {seconds:g} s later")
    return {"kind": kind, "how": how, "round": reached, "seconds_to_next_round": seconds, "hangs": 0}


def _ended(deployment: Deployment, study: str, begun: float) -> Row:
    try:
        status, hangs = deployment.wait_end(study, HANG_SECONDS).status, 0
    except RunError:
        status, hangs = deployment.study(study).status, 1
    honest = [name for name in deployment.running if name != faults.ROGUE]
    families = [one for name in honest for one in deployment.family(name)]
    exits = deployment.stop()
    left = sum(one.is_running() and one.status() != "zombie" for one in families)
    found = accounts.wrongs(deployment, study)
    return {
        "study_status": status,
        "study_rounds": deployment.rounds(study),
        "study_seconds": round(time.monotonic() - begun),
        **{kind: len(found[kind]) for kind in WRONGS},
        "hangs": hangs,
        "left_behind": left + sum(exits[name] != 0 for name in honest),
    }


def _known(table: Path, seed: int) -> list[Row]:
    if not table.is_file():
        return []
    with table.open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["seed"] == str(seed)]


def write_rows(table: Path, rows: Sequence[Row]) -> None:
    table.parent.mkdir(parents=True, exist_ok=True)
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def page(rows: Sequence[Row], command: str) -> list[str]:
    """What was done, and what came of it."""
    studies = {row["study"]: row for row in rows}.values()
    right = sum(row["study_status"] == "completed" for row in studies)
    left = sum(int(row["left_behind"]) for row in studies)
    commits = ", ".join(sorted({str(row["commit"]) for row in rows}))
    rounds = " or ".join(sorted({str(row["study_rounds"]) for row in studies}, key=int))
    lines = [
        "# A deployment under faults",
        "",
        f"`{command}`",
        "",
        f"- {span(str(row['date']) for row in rows)}, commit {commits}, {platform.machine()}, {os.cpu_count()} cores",
        "- real processes on one machine, made by `provision`, run by `serve`, `join` and `submit`: three sites,",
        f"  one a cheat; {len(studies)} studies of {rounds} private rounds, quorum 1, rounds that wait 60 s for their "
        "sites;",
        "  each fault at a random moment of a round",
        "",
        "| counted | |",
        "| --- | --- |",
        f"| faults | {len(rows)} |",
        f"| studies that ended right | {right} of {len(studies)} |",
        *[f"| {kind} | {sum(int(row[kind]) for row in studies)} |" for kind in WRONGS],
        f"| hangs | {sum(int(row['hangs']) for row in rows)} |",
        f"| processes left behind when told to stop, or ended by a fault | {left} |",
        "",
        "What the counts rest on:",
        "",
        *[f"- {kind}: {how}" for kind, how in accounts.HOW.items()],
        "",
        "Seconds from the fault (its own minute, where it lasts one, included) to the end of the next round:",
        "",
        "| fault | times | seconds | what was done |",
        "| --- | --- | --- | --- |",
    ]
    for kind in dict.fromkeys(row["kind"] for row in rows):
        own = [row for row in rows if row["kind"] == kind]
        took = ", ".join(
            f"{float(row['seconds_to_next_round']):.0f}" for row in own if row.get("seconds_to_next_round")
        )
        how = "; ".join(dict.fromkeys(str(row["how"]) for row in own if row["how"]))
        lines.append(f"| {kind} | {len(own)} | {took} | {how} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=9)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    given = parser.parse_args()
    rows = campaign(given.studies, given.seed, given.out, Console(stderr=True))
    command = f"python -m simulations.fault_campaign --studies {given.studies} --seed {given.seed}"
    (given.out / "faults.md").write_text("\n".join(page(rows, command)) + "\n")


if __name__ == "__main__":
    main()
