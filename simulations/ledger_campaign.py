"""Kill a site hundreds of times and look for a lost spend: docs/results/ledger-campaign.md and .csv.

python -m simulations.ledger_campaign --kills 500 --out docs/results
"""

import argparse
import csv
import datetime
import logging
import os
import platform
import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from simulations.campaigns import cost, cuts, kills
from simulations.campaigns.victims import Asking

KILLS_A_LIFE = 20
Row = dict[str, Any]
COLUMNS = ("commit", "seed", "life", "kill", "kind", "doing", "torn", "closed", *kills.FAULTS)


def campaign(wanted: int, seed: int, out: Path) -> list[Row]:
    """The rows of all kills; lives that OUT's table holds for this commit and seed are not lived again."""
    table = out / "ledger-campaign.csv"
    named = {"commit": commit(), "seed": str(seed)}
    lives = [(number, min(KILLS_A_LIFE, wanted - start)) for number, start in enumerate(range(0, wanted, KILLS_A_LIFE))]
    rows = _finished(table, named, dict(lives))
    done = {row["life"] for row in rows}
    _write(table, rows, "w")
    with tempfile.TemporaryDirectory() as folder:
        asking = Asking.prepared(Path(folder))
        left = [life for life in lives if str(life[0]) not in done]
        for number, count in track(left, f"lives of {KILLS_A_LIFE} kills", console=Console(stderr=True)):
            kind, coins = kills.KINDS[number % len(kills.KINDS)], random.Random(f"{seed} {number}")
            fresh = [{**named, **row} for row in kills.life(kind, number, count, asking, coins)]
            _write(table, fresh, "a")
            rows += fresh
    return rows


def _finished(table: Path, named: dict[str, str], lives: dict[int, int]) -> list[Row]:
    if not table.is_file():
        return []
    with table.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if all(row[key] == value for key, value in named.items())]
    counts = Counter(int(row["life"]) for row in rows)
    return [row for row in rows if counts[int(row["life"])] == lives.get(int(row["life"]))]


def _write(table: Path, rows: Sequence[Row], mode: str) -> None:
    table.parent.mkdir(parents=True, exist_ok=True)
    with table.open(mode, newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if mode == "w":
            writer.writeheader()
        writer.writerows(rows)


def commit() -> str:
    words = ["git", "rev-parse", "--short", "HEAD"]
    found = subprocess.run(words, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def page(rows: Sequence[Row], found: Counter[str], costs: dict[int, dict[str, list[float]]], command: str) -> list[str]:
    """What was done, and what came of it."""
    return [
        "# The ledger under kills, cuts and load",
        "",
        f"`{command}`",
        "",
        f"- {datetime.date.today().isoformat()}, commit {commit()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}",
        f"- {len(rows)} SIGKILLs at drawn moments. *site*: `Site.train` of a real site (no simulation, noise from the "
        "operating system). *ledger alone*: only the ledger's part of a round. *short writes*: the same, each line "
        "written in pieces of up to 40 bytes with pauses, so that kills tear lines. *mending*: a process that finds a "
        "torn line and is killed about when it mends it.",
        "- The witness is a pipe to the parent: a mark before patients are touched, and the hash of each reply as it "
        "would be sent. After each kill the ledger is verified with key and head and compared with the witness, the "
        "last reply is asked for again, and half of the requests that were interrupted.",
        "",
        *_kills(rows),
        *_doing(rows),
        *_cuts(found),
        *_costs(costs),
    ]


def _kills(rows: Sequence[Row]) -> list[str]:
    kinds = list(dict.fromkeys(kills.KINDS))
    table = [_line("", *kinds, "all"), "| --- |" + " ---: |" * (len(kinds) + 1)]
    counted = {"kill": "kills", "torn": "of them within a line", "closed": "after which all that remained is spent"}
    for key, words in {**counted, **kills.FAULTS}.items():
        each = [sum(1 if key == "kill" else int(row[key]) for row in rows if row["kind"] == kind) for kind in kinds]
        table.append(_line(words, *each, sum(each)))
    return [*table, ""]


def _doing(rows: Sequence[Row]) -> list[str]:
    counts = Counter(row["doing"] for row in rows)
    table = ["| killed while | kills |", "| --- | ---: |"]
    return [*table, *(_line(words, count) for words, count in counts.most_common()), ""]


def _cuts(found: Counter[str]) -> list[str]:
    return [
        f"Cut at every byte of the last two lines, for {len(cuts.LAST_TWO)} pairs of last events, with the head as "
        "before and as after the line, read and then mended:",
        "",
        "| cuts | |",
        "| --- | ---: |",
        _line("cuts", found["cuts"]),
        *(_line(words, found[key]) for key, words in cuts.FAULTS.items()),
        "",
    ]


def _costs(costs: dict[int, dict[str, list[float]]]) -> list[str]:
    """Milliseconds a round."""
    lines = [
        "Milliseconds of a round's parts, median (95 %), each round in a process of its own with every write on disk. "
        "A process checks the chain once, in its first look; bytes that are the same are not checked again, so "
        "the rest grows with the adding-up alone. The row of an empty chain is the disk's part: nine fsyncs.",
        "",
        _line("lines in the chain", *cost.PARTS),
        "| ---: |" + " ---: |" * len(cost.PARTS),
    ]
    for length, parts in costs.items():
        figures = [cost.median_and_95(parts[part]) for part in cost.PARTS]
        lines.append(_line(length, *(f"{median:.1f} ({high:.1f})" for median, high in figures)))
    return lines


def _line(*cells: object) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0, help="of the moments; the site's own noise has none")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    args = parser.parse_args(words)
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    rows = campaign(args.kills, args.seed, args.out)
    with tempfile.TemporaryDirectory() as folder:
        found = cuts.cut_all(Path(folder))
        costs = {lines: cost.measured(Path(folder) / f"chain-{lines}", lines) for lines in cost.LINES}
    command = f"python -m simulations.ledger_campaign --kills {args.kills} --seed {args.seed} --out docs/results"
    (args.out / "ledger-campaign.md").write_text("\n".join(page(rows, found, costs, command)) + "\n")
    faults = sum(int(row[key]) for row in rows for key in kills.FAULTS) + sum(found[key] for key in cuts.FAULTS)
    sys.stderr.write(f"{len(rows)} kills, {found['cuts']} cuts, {faults} faults\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
