"""`fedmedgen evaluate SET --real DIR`: fidelity and utility of a synthetic set."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedmedgen.data.cases import CaseSet

EXAMPLE = """what is printed (JSON; mean and sd over a row's trainings; what can't be measured says "skipped" and why):
  fidelity        fd, kid (0 is best), precision, recall, density, coverage (1 is best; density may be more);
                  `floor` is what real cases score against real ones, `prior` what the prior scores
  classification  trained on: tstr the set alone; trtr real; real_and_synthetic both, evenly by class;
                  prior, cheap, best_site with --run. Of each: auc, accuracy, recall by class,
                  ece (calibration error, 15 bins, 0 is best), brier (0 best, 1 worst, 0.25 a coin of two classes);
                  `rare`: recall of the rarest real class, trained on real ones alone and on both
  segmentation    the same rows: dice by mask class, dice_mean (1 is best), hd95 in pixels (0 is best; of the masks
                  that were found) and hd95_missed, the share of masks of which nothing was found

examples:
  fedmedgen evaluate runs/demo/synthetic --real data/lungs --run runs/demo
  fedmedgen evaluate SET --real pneumoniamnist.npz --size 28 28 --task classification --out metrics.json"""


def add(subparsers: "argparse._SubParsersAction[Any]") -> None:
    """Plug the command into the program."""
    parser = subparsers.add_parser(
        "evaluate",
        help="what a synthetic set is worth, measured on real cases",
        description="Fidelity, and what a fixed small network learns: trained on SET (tstr) and on the real "
        "split 'train' (trtr) and on both, tested on the real split 'test'. With --run also the prior alone, samples "
        "of the released statistics (cheap) and the best site.",
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
    from fedmedgen.audit.identity import folder_hash
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
            cheap=None if arguments.run_folder is None else _cheap(arguments.run_folder),
        )
    )
    found["set"] = folder_hash(arguments.set_folder)
    text = json.dumps(found, indent=None if arguments.json else 2)
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(text)
    return 0


def _cheap(folder: Path) -> "CaseSet | None":
    """As many samples of the run's statistics as the study measured, the same ones; None where it has no such model."""
    from fedmedgen.emission.sampling import emit
    from fedmedgen.evaluation.command import of_run
    from fedmedgen.models.saving import load_generator
    from fedmedgen.seeds import seed_of

    settings = of_run(folder)
    if not (folder / "cheap").is_dir():
        return None
    return emit(
        load_generator(folder / "cheap"),
        counts=settings.emission.count,
        settings=settings.generator,
        batch_size=settings.emission.batch_size,
        seed=seed_of(settings.seed, "emission"),
    )
