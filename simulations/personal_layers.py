"""What layers that stay at each site are worth where sites are unlike: docs/results/personal-layers.md.

python -m simulations.personal_layers --out docs/results

Four natural sites of other patients, machines and ages; a study whose rows stand in the CSV isn't run again.
"""

import argparse
import csv
import datetime
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track

from fedmedgen.audit import membership
from fedmedgen.cli.runs import settings_of
from fedmedgen.data import holdout, partition
from fedmedgen.data.cases import CaseSet
from fedmedgen.emission import emit
from fedmedgen.emission.personal import put_personal
from fedmedgen.evaluation.fidelity import fidelity
from fedmedgen.models.generators import Generator
from fedmedgen.models.saving import load_generator
from fedmedgen.settings import Settings
from server.results import COMMIT
from simulations.grid_table import code_commit, machine
from simulations.results import sheet
from simulations.run import result_of, simulate

COMMAND = "python -m simulations.personal_layers --out docs/results"
COMMON = ("study=few-labels", "segmenter.rounds=0", "evaluation.enabled=false", "audit.holdout=0.2",
          "runtime.server_threads=1", "emission.count=24")  # fmt: skip
OPEN = ("privacy=none", "data.labelled=0")
PRIVATE = ("privacy=eps10", "data.labelled=0", "statistics.share=0.5", "curriculum.steps=1000", "rounds=8",
           "privacy.engine=reference", "privacy.generator_steps=8", "privacy.learning_rate=1e-3")  # fmt: skip
LAYERS = ("none", "norms", "last-block")
DRAWN = 200  # cases for each site
FIELDS = ("privacy", "personal", "site", "unseen", "loss", "loss_global", "fd", "fd_global", "bytes_per_round",
          "seconds", "date", "commit", "machine")  # fmt: skip
Row = dict[str, Any]


def words_of(privacy: str, layers: str) -> tuple[str, ...]:
    return (*COMMON, *(OPEN if privacy == "none" else PRIVATE), f"federation.personal={layers}")


def rows_of(privacy: str, layers: str, runs: Path) -> tuple[list[Row], Image.Image]:
    """A row for each site of a study, which is run unless its result is there, and what each site draws."""
    run = runs / f"personal-{privacy}-{layers}"
    if not (run / "result.json").is_file():
        simulate(words_of(privacy, layers), out=str(run))
    settings, result = settings_of(run), result_of(run)
    found, drawn = [], []
    for site, cases in partition.held(settings.data, settings.seed).parts.items():
        generator = load_generator(run / "generator")
        of_all = _measured(generator, cases, settings)
        if layers != "none":
            put_personal(generator, run / "sites" / site / "personal")
        own = of_all if layers == "none" else _measured(generator, cases, settings)
        drawn.append(own["drawn"])
        found.append(
            {
                "privacy": privacy,
                "personal": layers,
                "site": site,
                "unseen": own["unseen"],
                "loss": own["loss"],
                "loss_global": of_all["loss"],
                "fd": own["fd"],
                "fd_global": of_all["fd"],
                "bytes_per_round": round((result["bytes_up"] + result["bytes_down"]) / result["rounds"]),
                "seconds": round(result["seconds"]),
                "date": datetime.date.today().isoformat(),
                "commit": result["commit"],
                "machine": machine(),
            }
        )
    return found, Image.fromarray(np.concatenate([np.asarray(strip) for strip in drawn]))


def _measured(generator: Generator, cases: CaseSet, settings: Settings) -> dict[str, Any]:
    """The denoising loss on patients that no round saw; FD of drawn cases from all of the site's, seen and unseen."""
    unseen = holdout.split(cases, settings.audit.holdout, holdout.simulated_key(settings.seed))[1]
    losses = -membership.attacks(generator, unseen, settings)["loss"]
    drawn = emit(generator, counts=DRAWN, settings=settings.generator, seed=settings.seed)
    distance = fidelity(drawn, cases, seed=settings.seed, max_cases=DRAWN)
    return {
        "unseen": len(unseen),
        "loss": float(losses.mean()),
        "fd": distance.get("fd", float("nan")),
        "drawn": sheet(drawn),
    }


def page(rows: Sequence[Row]) -> Iterator[str]:
    """The table as people read it, and the words of each study."""
    yield from ("# Layers that stay at their sites, where sites are unlike", "", f"`{COMMAND}`", "")
    yield f"- {', '.join(_each(rows, name) for name in ('date', 'commit', 'machine'))}"
    yield "- Montgomery and Shenzhen (adults), Guangzhou (children), Hannover (adults lying in bed): 64x64, no masks"
    yield "- *unseen*: images of patients that no round saw (a fifth). *loss*: of denoising those, mean of four noise"
    yield "  levels and eight draws, the same for all; *FD*: of 200 drawn cases from all of the site's own. Both with"
    yield "  the site's own layers in their place; *global*: with the server's first values, which others get"
    yield from ("", f"| {' | '.join(HEAD)} |", f"|{' --- |' * len(HEAD)}")
    yield from (f"| {' | '.join(_shown(row, name) for name in HEAD.values())} |" for row in rows)
    for privacy in dict.fromkeys(row["privacy"] for row in rows):
        for layers in dict.fromkeys(row["personal"] for row in rows if row["privacy"] == privacy):
            name = f"personal-layers-{privacy}-{layers}"
            sites = ", ".join(row["site"] for row in rows if (row["privacy"], row["personal"]) == (privacy, layers))
            yield from ("", f"**{privacy}, {layers}**: from the top {sites}; the first of each class", "")
            yield from (f"![{name}]({name}.png)", "", f"`fedmedgen simulate {' '.join(words_of(privacy, layers))}`")


HEAD = {
    "privacy": "privacy", "own layers": "personal", "site": "site", "unseen": "unseen", "loss": "loss",
    "loss, global": "loss_global", "FD": "fd", "FD, global": "fd_global", "bytes a round": "bytes_per_round",
}  # fmt: skip


def _shown(row: Row, name: str) -> str:
    value = row[name]
    if name in ("loss", "loss_global"):
        return f"{float(value):.4f}"
    if name == "personal":
        return "none: all of it is shared" if value == "none" else value
    return f"{float(value):,.0f}" if name in ("fd", "fd_global", "bytes_per_round") else str(value)


def _each(rows: Sequence[Row], name: str) -> str:
    return ", ".join(dict.fromkeys(row[name] for row in rows))


def _read(path: Path) -> list[Row]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--privacy", nargs="*", default=["none", "eps10"], choices=["none", "eps10"])
    args = parser.parse_args(words)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    os.environ.setdefault(COMMIT, code_commit())  # results that are being written make no commit dirty
    path = args.out / "personal-layers.csv"
    rows = _read(path)
    wanted = [(privacy, layers) for privacy in args.privacy for layers in LAYERS]
    left = [one for one in wanted if one not in {(row["privacy"], row["personal"]) for row in rows}]
    for privacy, layers in track(left, "studies", console=Console(stderr=True)):
        found, drawn = rows_of(privacy, layers, args.runs)
        rows += found
        args.out.mkdir(parents=True, exist_ok=True)
        drawn.save(args.out / f"personal-layers-{privacy}-{layers}.png", optimize=True)
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        path.with_suffix(".md").write_text("\n".join(page(rows)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
