"""One short private study of each family of generators on both backends: docs/results/backends.md.

python -m simulations.backends --out docs/results
"""

import argparse
import datetime
import json
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track
from safetensors.numpy import load_file

from simulations.grid_table import code_commit, machine
from simulations.run import result_of, simulate

COMMAND = "python -m simulations.backends --out docs/results"
FAMILIES = ("unet", "dit", "coefficients", "latent", "vae", "gan", "moments")
COMMON = ("study=compare", "privacy=eps10", "rounds=2", "privacy.generator_steps=3", "curriculum.steps=50",
          "emission.count=64", "evaluation.enabled=false", "runtime.server_threads=1")  # fmt: skip
MOMENTS = ("curriculum.steps=0", "statistics.share=1", "statistics.rounds=2")
BACKENDS = ("in-process", "flower")


@dataclass(frozen=True)
class Compared:
    """A family's study twice."""

    family: str
    epsilon: float
    weights: int  # numbers compared
    largest: float  # difference of any weight
    images: float  # largest difference of any pixel, of 255
    seconds: Mapping[str, float]
    kilobytes: Mapping[str, float]  # of all sites, both ways, in all rounds


def compared(family: str, runs: Path) -> Compared:
    """Run what hasn't been run, and look at all that the generator is saved with and at what it drew."""
    words = (*COMMON, f"generator={family}", *(MOMENTS if family == "moments" else ()))
    folders = {backend: runs / f"backends-{family}-{backend}" for backend in BACKENDS}
    for backend, folder in folders.items():
        if not (folder / "result.json").is_file():
            simulate(words, backend=backend, out=str(folder))
    results = {backend: result_of(folder) for backend, folder in folders.items()}
    one, other = (_weights(folder) for folder in folders.values())
    assert one.keys() == other.keys()
    drawn, again = (_images(folder) for folder in folders.values())
    return Compared(
        family, float(results[BACKENDS[0]]["privacy"]["epsilon"]), sum(value.size for value in one.values()),
        max(float(np.abs(value - other[name]).max(initial=0)) for name, value in one.items()),
        float(np.abs(drawn - again).max()), {key: float(found["seconds"]) for key, found in results.items()},
        {key: (found["bytes_up"] + found["bytes_down"]) / 1000 for key, found in results.items()},
    )  # fmt: skip


def _weights(run: Path) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for path in sorted((run / "generator").rglob("*.safetensors")):
        inside = path.relative_to(run).as_posix()
        found |= {f"{inside}/{name}": value.astype(np.float64) for name, value in load_file(path).items()}
    return found


def _images(run: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path), np.float64) for path in sorted((run / "synthetic/images").iterdir())])


def page(rows: Sequence[Compared]) -> Iterator[str]:
    yield from ("# Each family of generators on both backends", "", f"`{COMMAND}`", "")
    yield f"- {datetime.date.today().isoformat()}, commit {code_commit()}, {machine()}"
    yield "- PneumoniaMNIST at four sites, epsilon 10: a release, 50 steps at the server, two rounds of three"
    yield "  DP-SGD steps (*moments*: two releases); 64 cases drawn. *flower*: on Ray; seconds since the server's start"
    yield "- *difference*: the largest of any number that the generator is saved with; *of pixels*: of any case, in 255"
    yield ""
    head = ("family", "epsilon", "numbers", "difference", "of pixels",
            *(f"{what}, {backend}" for what in ("seconds", "kB in all") for backend in BACKENDS))  # fmt: skip
    yield from (f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}")
    for one in rows:
        cells = [one.family, f"{one.epsilon:.4f}", f"{one.weights:,}", f"{one.largest:.1e}", f"{one.images:g}"]
        cells += [f"{found[key]:,.0f}" for found in (one.seconds, one.kilobytes) for key in BACKENDS]
        yield f"| {' | '.join(cells)} |"
    yield from ("", f"Each by `fedmedgen simulate {' '.join(COMMON)} generator=FAMILY [--backend flower]`;")
    yield f"*moments* with `{' '.join(MOMENTS)}` behind."


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    args = parser.parse_args(words)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    found: list[Compared] = []
    for family in track(FAMILIES, "families", console=Console(stderr=True)):
        found.append(compared(family, args.runs))
        (args.out / "backends.md").write_text("\n".join(page(found)) + "\n")
    sys.stdout.write(json.dumps({one.family: one.largest for one in found}) + "\n")
    return int(any(one.largest > 1e-6 for one in found))


if __name__ == "__main__":
    sys.exit(main())
