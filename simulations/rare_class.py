"""Does private synthetic data help with a rare class: a classifier on real, and on real and synthetic cases.

python -m simulations.rare_class --out docs/results

runs the grid of rare-class.yaml, whose cells name `data.rare_class`; each row holds what every training set is worth.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedmedgen.data.cases import CaseSet
from fedmedgen.data.partition import held
from fedmedgen.errors import RunError
from fedmedgen.evaluation import classification
from fedmedgen.evaluation.mixing import evenly
from fedmedgen.reporting.record import read
from fedmedgen.settings import Settings
from server.run_store import finite, write_text
from simulations import grid

GRID = "simulations/rare-class.yaml"


def measured(words: Sequence[str], folder: Path) -> dict[str, Any]:
    """Simulate the study with its rare class; the result, with what each training set is worth for classification."""
    result = grid.simulated(words, folder)
    record = read(folder)
    if record.synthetic is None or not record.settings.data.rare_class:
        raise RunError("expected a study with data.rare_class and a synthetic set")
    metrics = {**result["metrics"], "classification": classifiers(record.settings, record.synthetic)}
    write_text(folder / "rare-class.json", json.dumps(finite(metrics["classification"]), indent=2))
    return {**result, "metrics": metrics}


def classifiers(settings: Settings, synthetic: CaseSet) -> dict[str, Any]:
    """The fixed classifier on the whole test split, after training on each set."""
    cases = held(settings.data, settings.seed)
    test = cases.loaded.of_split("test")
    evaluation = settings.evaluation
    return {
        name: classification.utility(
            train, test, seeds=evaluation.seeds, steps=evaluation.classifier_steps, base_seed=settings.seed
        )
        for name, train in training_sets(settings, cases.parts, synthetic).items()
    }


def training_sets(settings: Settings, parts: Mapping[str, CaseSet], synthetic: CaseSet) -> dict[str, CaseSet]:
    """Synthetic alone; real of all sites and of the first, each with and without synthetic; uncut real.

    No hospital has the real cases of all: what a synthetic set can bring is to be seen at one of them.
    """
    real, own = _together(parts, synthetic), parts[min(parts)]
    whole = replace(settings.data, rare_class="", rare_share=0.0, rare_patients=0)
    return {
        "tstr": synthetic,
        "real": real,
        "real_and_synthetic": evenly(real, synthetic),
        "one_site": own,
        "one_site_and_synthetic": evenly(own, synthetic),
        "real_uncut": _together(held(whole, settings.seed).parts, synthetic),
    }


def _together(parts: Mapping[str, CaseSet], like: CaseSet) -> CaseSet:
    return like.with_cases([case for name in sorted(parts) for case in parts[name]])


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--grid", type=Path, default=Path(GRID))
    parser.add_argument("--retry", action="store_true", help="run cells again whose last run failed")
    args = parser.parse_args(words)
    given = [str(args.grid), "--out", str(args.out), *(["--retry"] if args.retry else [])]
    return grid.main(given, runner=measured, command=f"python -m simulations.rare_class --out {args.out}")


if __name__ == "__main__":
    sys.exit(main())
