"""Federated rounds in one process: what a round costs in seconds and bytes as sites are added."""

import csv
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from simulations.benchmarks.timing import machine
from simulations.run import result_of, simulate

SITES = (2, 4, 8)
STUDY = ("study=demo", "smoke=true", "segmenter.rounds=0", "evaluation.enabled=false", "emission.count=6")


def measure(*, quick: bool = False) -> dict[str, Any]:
    """The demo's network on tiny sites, so that what is seen is the federation and not the training."""
    rounds = 2 if quick else 6
    methods = {f"{sites}_sites": _run(sites, rounds) for sites in (SITES[:1] if quick else SITES)}
    few, most = (f"{sites}_sites" for sites in (SITES[0], SITES[0] if quick else SITES[-1]))
    grown = {name: methods[most][name] / methods[few][name] for name in ("seconds_per_round", "bytes_per_round")}
    return {"rounds": rounds, "methods": methods, "ratios": {f"{n}_most_vs_fewest": v for n, v in grown.items()},
            "machine": machine()}  # fmt: skip


def lines(found: dict[str, Any]) -> list[str]:
    """The result as a page's table."""
    return [
        f"{found['rounds']} rounds of the demo, cut to seconds; wall time.",
        "",
        "| sites | seconds a round | bytes a round |",
        "| --- | --- | --- |",
        *(
            f"| {name.partition('_')[0]} | {each['seconds_per_round']:.2f} | {each['bytes_per_round']:,.0f} |"
            for name, each in found["methods"].items()
        ),
    ]


def _run(sites: int, rounds: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        words = [*STUDY, f"data.sites={sites}", f"federation.min_sites={sites}", f"rounds={rounds}"]
        run = simulate(words, backend="in-process", out=str(Path(folder) / "run"))
        result = result_of(run)
        with (run / "rounds.csv").open() as file:
            rows = [row for row in csv.DictReader(file) if row["stage"] == "generator"]
    seconds: dict[str, float] = {}
    for row in rows:
        seconds[row["round"]] = seconds.get(row["round"], 0.0) + float(row["seconds"])
    return {
        "seconds_per_round": median(seconds.values()),
        "bytes_per_round": (result["bytes_up"] + result["bytes_down"]) / max(1, result["rounds"]),
    }
