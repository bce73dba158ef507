"""`fedmedgen emit RUN --count N --out SET`: synthetic cases from a trained generator."""

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedmedgen.data.cases import CaseSet
    from fedmedgen.models.generators import Generator
    from fedmedgen.settings import Settings

EXAMPLE = """examples:
  fedmedgen emit runs/demo-0 --count 1000 --out synthetic
  fedmedgen emit runs/demo-0 --label nodule=500 --out nodules --format npz --seed 7
  fedmedgen emit runs/lungs-0 --count 200 --out pacs --format dicom --body-part CHEST
  fedmedgen emit runs/lungs-0 --count 200 --out ours --personal runs/lungs-0/sites/montgomery/personal"""
BODY_PARTS = {"chest": "CHEST", "panoramic": "JAW"}


def add(subparsers: "argparse._SubParsersAction[Any]") -> None:
    """Plug the command into the program."""
    parser = subparsers.add_parser(
        "emit",
        help="synthetic cases from a trained generator",
        description="Draw labelled synthetic cases (with masks, if the generator draws them) from a run's generator.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run_folder", metavar="RUN", type=Path, help="a run folder with generator/ and settings.yaml")
    parser.add_argument("--count", metavar="N", type=int, help="cases in all, spread evenly over the classes")
    parser.add_argument("--out", metavar="SET", type=Path, required=True, help="a new folder for the set")
    parser.add_argument(
        "--label", metavar="NAME=COUNT", type=_label, action="append", default=[], help="so many of this class"
    )
    parser.add_argument(
        "--format",
        choices=("png", "npz", "dicom"),
        default="png",
        help="dicom: Secondary Capture images marked synthetic, masks also as SEG objects (default: %(default)s)",
    )
    parser.add_argument(
        "--body-part",
        metavar="CODE",
        type=_body_part,
        help="DICOM's BodyPartExamined, as CHEST (default: the phantoms' own; of other data unknown)",
    )
    parser.add_argument(
        "--personal",
        metavar="FOLDER",
        type=Path,
        help="draw as one site would: with the layers it kept (federation.personal), from its own folder",
    )
    parser.add_argument(
        "--precision",
        choices=("fp32", "bf16"),
        help="bf16 draws half as fast again from a diffusion network, to a rounding (default: the run's own, fp32)",
    )
    parser.add_argument("--seed", metavar="S", type=int, default=0, help="another seed, another set (default: 0)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Load the generator, draw, write the set and say what it holds."""
    from fedmedgen.cli.runs import require_new, settings_of
    from fedmedgen.emission import write_set
    from fedmedgen.emission.personal import put_personal
    from fedmedgen.models.saving import load_generator

    require_new(arguments.out)
    settings = settings_of(arguments.run_folder)
    generator = load_generator(arguments.run_folder / "generator")
    if arguments.personal:
        put_personal(generator, arguments.personal)
    counts = counts_of(generator.config.classes, arguments.count, dict(arguments.label))
    cases = _emit(generator, counts, settings, arguments.seed, arguments.precision or settings.emission.precision)
    write_set(cases, arguments.out, format=arguments.format, datasheet=_datasheet(arguments, settings))
    summary = {"out": str(arguments.out), "count": len(cases), "labels": counts, "format": arguments.format}
    if arguments.json:
        print(json.dumps(summary))
    else:
        words = ", ".join(f"{count} {name}".rstrip() for name, count in counts.items())
        print(f"{arguments.out}: {len(cases)} synthetic cases ({words})")
    return 0


def counts_of(classes: Sequence[str], count: int | None, labels: Mapping[str, int]) -> dict[str, int]:
    """Cases of each class: those named, and what is left of `count` spread evenly over the others.

    **Raises** `SettingsError` if the two don't fit together.
    """
    from fedmedgen.emission.sampling import label_counts
    from fedmedgen.errors import SettingsError

    named = label_counts(classes, labels)
    total = sum(named.values())
    if count is None:
        if not labels:
            raise SettingsError("say how many cases: give --count N, or --label NAME=COUNT for some classes")
        return named
    rest = [name for name in classes or [""] if name not in named]
    if count < total or (count > total and not rest) or count < 1:
        raise SettingsError(
            f"--count must be at least 1 and fit the labels' sum of {total}; got {count}: correct one of them"
        )
    return {**named, **label_counts(rest, count - total)} if rest else named


def _label(word: str) -> tuple[str, int]:
    name, equals, count = word.rpartition("=")
    if not equals or not name or not count.isdecimal():
        raise argparse.ArgumentTypeError(f"expected NAME=COUNT, as nodule=100; got {word!r}")
    return name, int(count)


def _body_part(word: str) -> str:
    """A code string of DICOM: at most 16 capitals, digits, spaces and underscores."""
    if not re.fullmatch(r"[A-Z0-9_ ]{1,16}", word):
        raise argparse.ArgumentTypeError(f"expected at most 16 of A-Z, 0-9, _ and space, as CHEST; got {word!r}")
    return word


def _emit(
    generator: "Generator", counts: Mapping[str, int], settings: "Settings", seed: int, precision: str
) -> "CaseSet":
    from rich.console import Console
    from rich.progress import Progress

    from fedmedgen.devices import drawing_device
    from fedmedgen.emission import emit
    from fedmedgen.models.lean import drawing_in

    device = drawing_device(settings)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("drawing", total=sum(counts.values()))
        return emit(
            drawing_in(generator.to(device), precision),
            counts=counts,
            settings=settings.generator,
            batch_size=settings.emission.batch_size,
            seed=seed,
            progress=lambda done, _: bar.update(task, completed=done),
        )


def _datasheet(arguments: argparse.Namespace, settings: "Settings") -> dict[str, object]:
    """Where the set comes from and what was promised to the patients behind it."""
    from fedmedgen.audit.identity import folder_hash

    path = arguments.run_folder / "result.json"
    own = "" if settings.data.root else BODY_PARTS[settings.data.phantoms.anatomy]
    result = json.loads(path.read_text()) if path.is_file() else {}
    return {
        "synthetic": True,
        "study": settings.study,
        "seed": arguments.seed,
        "sampler": settings.generator.sampler,
        "sampler_steps": settings.generator.sampler_steps,
        "guidance": settings.generator.guidance,
        "privacy": result.get("privacy", {"mode": settings.privacy.mode}),
        "commit": result.get("commit"),
        "generator": folder_hash(arguments.run_folder / "generator"),
        "personal_layers": bool(arguments.personal),
        "body_part": arguments.body_part or own,
        "public_masks": settings.public_masks,
    }
