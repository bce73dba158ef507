"""The most memory a method takes, each in a process of its own: `python -m simulations.benchmarks.memory METHOD`."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from simulations.benchmarks.methods import methods
from simulations.benchmarks.subject import network, patients
from simulations.benchmarks.timing import device

ROOT = Path(__file__).resolve().parents[2]


def peak_megabytes(names: Sequence[str], count: int, *, quick: bool) -> dict[str, float]:
    """Megabytes at the peak of one step on `count` patients: resident ones, libraries included, or a GPU's own."""
    found = {}
    for name in names:
        words = [sys.executable, "-m", "simulations.benchmarks.memory", name, str(count), str(int(quick))]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
        found[name] = float(done.stdout.split()[-1])
    return found


def main(words: Sequence[str]) -> None:
    name, count, quick = words
    torch.set_num_threads(1)
    if name != "nothing":
        methods(network(quick=bool(int(quick))), 1.0)[name](patients(int(count), 1))
    sys.stdout.write(f"{_peak():.1f}\n")


def _peak() -> float:
    """Of this program alone: `ru_maxrss` would begin with the peak of the process that started it."""
    if device().type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status").read_text()
    return float(status.partition("VmHWM:")[2].split()[0]) / 1024


if __name__ == "__main__":
    main(sys.argv[1:])
