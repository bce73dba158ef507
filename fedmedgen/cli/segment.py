"""`fedmedgen segment RUN IMAGES --out DIR`: masks for radiographs, by a run's federated segmenter."""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from fedmedgen.emission.mask_folder import Outcome, Wanted
    from fedmedgen.models.segmenter import Segmenter

EXAMPLE = """what is written (all at each image's own size, subfolders kept):
  DIR/masks/NAME.png           0 background, 255 the last class, others evenly between
  DIR/overlays/NAME.png        the radiograph with the masks' outlines
  DIR/segmentations/NAME.dcm   with --format dicom: a SEG of the source's patient and study that refers to it
  DIR/segments.csv             a row for each image: of each class its share of the area and its number of pieces,
                               and the segmenter's hash
Of a set, with masks/ beside its images/, the images alone are marked.

Masks and overlays are of patients, as the images are; a SEG holds the patient's name. They stay in DIR on this
machine: nothing is sent anywhere. Keep DIR as safe as the images.
Not a medical device: no mask may guide care without a clinician's own reading. The segmenter knows the anatomy and
views of its training alone, and marks something on any other picture too.

examples:
  fedmedgen segment runs/lungs-0 /data/lungs/images --out lungs-masks
  fedmedgen segment runs/lungs-0 chest.dcm --out chest-mask --format dicom --json"""


def add(subparsers: "argparse._SubParsersAction[Any]") -> None:
    """Plug the command into the program."""
    parser = subparsers.add_parser(
        "segment",
        help="masks for radiographs, by a run's segmenter",
        description="Mark radiographs (PNG or DICOM, of any size) with a run's federated segmenter. A file that can't "
        "be read is named and set aside; exit code 1 if none can. The images are not changed.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run_folder", metavar="RUN", type=Path, help="a run folder with segmenter/ and settings.yaml")
    parser.add_argument("images", metavar="IMAGES", type=Path, help="a radiograph, or a folder of them at any depth")
    parser.add_argument(
        "--out", metavar="DIR", type=Path, required=True, help="a folder for what is written, new or empty"
    )
    parser.add_argument(
        "--format",
        choices=("png", "dicom"),
        default="png",
        help="dicom: masks also as SEG objects, for DICOM images only (default: %(default)s)",
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on in DIR after an interruption: images with a row there are left"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Load the segmenter, mark the images, write and say what was set aside."""
    from fedmedgen.cli.runs import require_new, settings_of
    from fedmedgen.devices import drawing_device
    from fedmedgen.emission.mask_folder import Wanted, radiographs
    from fedmedgen.emission.mask_table import TABLE
    from fedmedgen.errors import DataError

    out: Path = arguments.out
    if not (arguments.resume and (out / TABLE).is_file()):
        require_new(out)
    settings = settings_of(arguments.run_folder)
    files = radiographs(arguments.images)
    if arguments.format == "dicom":
        _require_dicom(files)
    segmenter, identity = _segmenter(arguments.run_folder, drawing_device(settings))
    wanted = Wanted(fit=settings.data.fit, format=arguments.format, segmenter=identity)
    outcome = _write(segmenter, files, out, wanted)
    for bad in outcome.rejected:
        sys.stderr.write(f"set aside {bad.file}: {bad.reason}\n")
    _say(outcome, segmenter.config.mask_classes, out, as_json=arguments.json)
    if not outcome.rows:
        raise DataError(f"no usable radiograph among {len(files)} at {arguments.images}: correct those named above")
    return 0


def _require_dicom(files: Mapping[str, Path]) -> None:
    """**Raises** `SettingsError` if a file has no patient and no study that a SEG could refer to."""
    from fedmedgen.emission.mask_folder import not_dicom
    from fedmedgen.errors import SettingsError

    if others := not_dicom(files):
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise SettingsError(
            "--format dicom writes a SEG of the image's own patient and study, so it needs DICOM images; "
            f"got {others[0]}{more}: use --format png, or name a folder of DICOM alone"
        )


def _segmenter(run_folder: Path, device: "torch.device") -> "tuple[Segmenter, str]":
    """The run's segmenter on the device, and the hash of its folder.

    **Raises** `RunError` if the run has none.
    """
    from fedmedgen.audit.identity import folder_hash
    from fedmedgen.errors import RunError
    from fedmedgen.models.saving import load_segmenter

    folder = run_folder / "segmenter"
    if not folder.is_dir():
        raise RunError(
            f"expected a run with segmenter/; {run_folder} has none, as of a study without masks: name a run that "
            "trained one, or simulate again with data.mask_classes set and segmenter.rounds above 0"
        )
    return load_segmenter(folder).to(device).eval(), folder_hash(folder)


def _write(segmenter: "Segmenter", files: Mapping[str, Path], out: Path, wanted: "Wanted") -> "Outcome":
    from rich.console import Console
    from rich.progress import Progress

    from fedmedgen.emission.mask_folder import write_masks

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("marking", total=len(files))
        return write_masks(segmenter, files, out, wanted, lambda done: bar.update(task, completed=done))


def _say(outcome: "Outcome", mask_classes: tuple[str, ...], out: Path, *, as_json: bool) -> None:
    from fedmedgen.emission.overlay import colour_of

    if as_json:
        rejected = [{"file": bad.file, "kind": bad.kind, "reason": bad.reason} for bad in outcome.rejected]
        print(json.dumps({"count": len(outcome.rows), "rejected": rejected, "out": str(out)}))
    elif outcome.rows:
        colours = ", ".join(f"{name} {colour_of(value)}" for value, name in enumerate(mask_classes) if value)
        aside = f", {len(outcome.rejected)} set aside" if outcome.rejected else ""
        print(f"{out}: masks of {len(outcome.rows)} radiographs{aside}; in overlays: {colours}")
