"""`fedmedgen evaluate SET --real DIR`: fidelity and utility of a synthetic set."""

import argparse
import json
from pathlib import Path
from typing import Any

EXAMPLE = """examples:
  fedmedgen evaluate runs/demo/synthetic --real data/lungs --run runs/demo
  fedmedgen evaluate SET --real pneumoniamnist.npz --size 28 28 --task classification --out metrics.json"""


def add(subparsers: "argparse._SubParsersAction[Any]") -> None:
    """Plug the command into the program."""
    parser = subparsers.add_parser(
        "evaluate",
        help="what a synthetic set is worth, measured on real cases",
        description="Fidelity, and what a fixed small network learns: trained on SET (tstr) and on the real "
        "split 'train' (trtr), tested on the real split 'test'. With --run also the prior alone and the best site.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("set_folder", metavar="SET", type=Path, help="a synthetic set (folder or npz)")
    parser.add_argument("--real", required=True, type=Path, metavar="DIR|NPZ", help="real cases, with a test split")
    parser.add_argument("--run", dest="run_folder", type=Path, metavar="RUN", help="the run that made SET")
    parser.add_argument("--task", choices=["classification", "segmentation"], help="only this one")
    parser.add_argument("--size", nargs=2, type=int, metavar=("H", "W"), help="pixels (default: of RUN, else of SET)")
    parser.add_argument("--mask-classes", metavar="NAMES", help="comma-separated, background first (default: of RUN)")
    parser.add_argument("--seeds", type=int, help="trainings for each row (default: of RUN, else 3)")
    parser.add_argument("--seed", type=int, help="seed of splits and trainings (default: of RUN, else 0)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the JSON there too")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure, print, and write if asked."""
    from fedmedgen.evaluation.command import Request, measure

    found = measure(
        Request(
            synthetic=arguments.set_folder,
            real=arguments.real,
            run=arguments.run_folder,
            task=arguments.task,
            size=tuple(arguments.size) if arguments.size else None,
            mask_classes=tuple(arguments.mask_classes.split(",")) if arguments.mask_classes else None,
            seeds=arguments.seeds,
            seed=arguments.seed,
        )
    )
    text = json.dumps(found, indent=None if arguments.json else 2)
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(text)
    return 0
