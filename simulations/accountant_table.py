"""A table of the accountant beside closed forms, Opacus PRV and Renyi accounting, for docs/results.

python -m simulations.accountant_table --out docs/results
"""

import argparse
import csv
import datetime
import logging
import math
import os
import platform
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from opacus.accountants import PRVAccountant
from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtr

from fedmedgen.composition import compose
from fedmedgen.federation import plan
from fedmedgen.privacy import accountant
from server.results import commit

COMMAND = "python -m simulations.accountant_table --out docs/results"
DELTA = 1e-5
PRV_ERROR = 0.002  # of epsilon: the error Opacus is asked to stay within
DIFFUSION = 4096 / 60000  # DP diffusion models on MNIST: 4,394 steps
STUDIES, EPSILONS = ("demo", "lungs", "pneumonia"), (1, 3, 8, 10)
GAUSSIAN = ((1.0, 1), (5.0, 10), (20.0, 400), (100.0, 10_000))  # noise multiplier, steps
SUBSAMPLED: accountant.Parts = (
    (1e-3, 0.6, 20_000),
    (1e-3, 0.6, 100_000),
    (0.01, 1.0, 20_000),
    (0.05, 0.4, 10),
    (0.5, 4.0, 1000),
    (0.9, 5.0, 100),
    (1.0, 30.0, 1000),
)
MIXED: tuple[accountant.Parts, ...] = (
    ((1.0, 20.0, 1), (0.2, 2.0, 120), (0.2, 3.0, 30)),
    ((1.0, 8.0, 1), (0.05, 1.0, 400), (0.3, 4.0, 30)),
    ((1.0, 50.0, 1), (0.02, 0.6, 60), (0.1, 0.9, 60)),
)


@dataclass(frozen=True)
class Row:
    """One plan, and its epsilon at `delta` by each accountant; `calibration_s` where its noise was found for it."""

    group: str
    plan: str
    delta: float
    pld: float
    pld_s: float
    other: float
    by: str  # "closed form" or "PRV"
    other_s: float
    rdp: float
    rdp_s: float
    calibration_s: float | None = None

    @property
    def ratio(self) -> float:
        return self.pld / self.other


def rows() -> Iterator[Row]:
    """All plans of the table, each computed and timed once, with nothing cached."""
    for noise, steps in GAUSSIAN:
        yield row("no sampling", ((1.0, noise, steps),))
    for published in (2.52, 18.4):
        yield row("published", ((DIFFUSION, published, 4394),))
    for part in SUBSAMPLED:
        yield row("sampled", (part,))
    for parts in MIXED:
        yield row("statistics, generator, segmenter", parts)
    for study in STUDIES:
        for epsilon in EPSILONS:
            settings = compose([f"study={study}", f"privacy=eps{epsilon}"])
            noise, seconds = timed(partial(plan.noise_multiplier, settings))
            agreed = plan.plan(settings, noise=noise, patients=100, labelled=100)
            yield row(f"{study}, epsilon {epsilon}", agreed.parts, delta=agreed.delta, calibration_s=seconds)


def row(group: str, parts: accountant.Parts, *, delta: float = DELTA, calibration_s: float | None = None) -> Row:
    pld, pld_s = timed(lambda: accountant.epsilon(parts, delta))
    single = len(parts) == 1 and parts[0][0] == 1
    other, other_s = timed(lambda: gaussian(parts, delta) if single else prv(parts, delta, pld))
    rdp, rdp_s = timed(lambda: accountant.epsilon_rdp(parts, delta))
    return Row(
        group, words(parts), delta, pld, pld_s, other, "closed form" if single else "PRV", other_s, rdp, rdp_s,
        calibration_s,
    )  # fmt: skip


def timed(compute: Callable[[], float]) -> tuple[float, float]:
    """A result and its seconds, from an accountant that remembers nothing."""
    accountant._epsilon.cache_clear()
    accountant._one_step.cache_clear()
    begin = time.perf_counter()
    return compute(), time.perf_counter() - begin


def gaussian(parts: accountant.Parts, delta: float) -> float:
    """Epsilon of one unsampled Gaussian stage, exact (Balle and Wang 2018)."""
    ((_, noise, steps),) = parts
    mu = math.sqrt(steps) / noise

    def excess(epsilon: float) -> float:
        return float(ndtr(-epsilon / mu + mu / 2) - math.exp(epsilon + log_ndtr(-epsilon / mu - mu / 2)) - delta)

    return float(brentq(excess, 1e-9, 700))


def prv(parts: accountant.Parts, delta: float, size: float) -> float:
    """Opacus' estimate by privacy random variables (Gopi et al. 2021), its error at most 0.2 % of `size`."""
    other = PRVAccountant()
    other.history = [(noise, rate, steps) for rate, noise, steps in parts]
    error, delta_error = PRV_ERROR * size, delta / 1000
    found = other._get_dprv(eps_error=error, delta_error=delta_error)
    return float(found.compute_epsilon(delta, delta_error, error)[1])


def words(parts: accountant.Parts) -> str:
    return "; ".join(f"q {rate:.4g}, sigma {noise:.4g}, T {steps:,}" for rate, noise, steps in parts)


def page(found: Sequence[Row]) -> list[str]:
    """The page: how it was made, what it shows, the table."""
    ratios = [item.ratio for item in found]
    below = [item for item in found if item.pld > item.rdp]
    slowest = max(item.calibration_s or 0.0 for item in found)
    return [
        "# The accountant beside others",
        "",
        f"`{COMMAND}`",
        "",
        f"- {datetime.date.today().isoformat()}, commit {commit()}, {platform.machine()} with {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, dp-accounting {version('dp-accounting')}, opacus {version('opacus')}",
        f"- PLD over closed form or PRV: from {min(ratios):.4f} to {max(ratios):.4f}; PRV is Opacus' estimate, asked "
        f"for an error of at most {100 * PRV_ERROR:g} % of epsilon",
        f"- plans where PLD is above RDP: {len(below)} of {len(found)}; slowest calibration {slowest:.1f} s",
        "",
        "A plan is (sample rate q, noise multiplier sigma, steps T) of each stage, for one patient added or removed.",
        "PLD is what fedmedgen claims, an upper bound. The published pair is that of differentially private diffusion",
        "on MNIST: 2.52 and 18.4 are the smallest noise of those digits that Renyi accounting puts within epsilon 10",
        "and 1. The noise of a study is calibrated first: the smallest, to 0.1 %, whose PLD is within its epsilon.",
        "Seconds are of one call, with nothing cached. The same figures are in [accountant.csv](accountant.csv).",
        "",
        "| | plan | delta | PLD | closed form or PRV | PLD / it | RDP | seconds: PLD, other, RDP, calibration |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *(_line(item) for item in found),
    ]


def _line(item: Row) -> str:
    calibration = "-" if item.calibration_s is None else f"{item.calibration_s:.2f}"
    return (
        f"| {item.group} | {item.plan} | {item.delta:g} | {item.pld:.4f} | {item.other:.4f} ({item.by}) | "
        f"{item.ratio:.4f} | {item.rdp:.4f} | {item.pld_s:.2f}, {item.other_s:.2f}, {item.rdp_s:.2f}, {calibration} |"
    )


def write(found: Sequence[Row], out: Path) -> Path:
    """OUT/accountant.md and OUT/accountant.csv; the page's path."""
    out.mkdir(parents=True, exist_ok=True)
    lines = page(found)  # names the commit, so before anything is changed
    with (out / "accountant.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*vars(found[0]), "ratio"])
        writer.writeheader()
        writer.writerows({**{key: _cell(value) for key, value in vars(item).items()}, "ratio": _cell(item.ratio)}
                         for item in found)  # fmt: skip
    path = out / "accountant.md"
    path.write_text("\n".join(lines) + "\n")
    return path


def _cell(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    args = parser.parse_args(words)
    logging.getLogger("absl").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sys.stdout.write(f"{write(list(rows()), args.out)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
