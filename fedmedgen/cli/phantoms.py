"""`fedmedgen phantoms --count N --out DIR`: procedural radiographs with masks and labels, as a folder of one site."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedmedgen.data.cases import Case

EXAMPLE = """examples:
  fedmedgen phantoms --count 500 --out phantoms
  fedmedgen phantoms --count 200 --out teeth --anatomy panoramic --size 64x128 --site site-2"""


def add(subparsers: "argparse._SubParsersAction[Any]") -> None:
    """Plug the command into the program."""
    parser = subparsers.add_parser(
        "phantoms",
        help="procedural radiographs with exact masks and labels",
        description="Draw phantoms into OUT/SITE/{images,masks,labels.csv}, a data set that every command reads. "
        "Call again with another --site to add a site.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--count", type=int, required=True, metavar="N", help="how many radiographs, one a patient")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the folder of the site goes")
    parser.add_argument("--anatomy", choices=("chest", "panoramic"), default="chest")
    parser.add_argument("--size", default="", metavar="S|HxW", help="pixels (default 64, panoramic 64x128)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--site", default="site-1", help="name of the site, which decides on its machine and people")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Draw, write, and say what was written."""
    from fedmedgen.data import phantoms
    from fedmedgen.errors import DataError, SettingsError

    size = _size(arguments.size or ("64" if arguments.anatomy == "chest" else "64x128"))
    if arguments.count < 1:
        raise SettingsError(f"--count must be at least 1; got {arguments.count}")
    if Path(arguments.site).name != arguments.site or arguments.site.startswith("."):
        raise SettingsError(f"--site must be a plain folder name; got {arguments.site!r}")
    folder = arguments.out / arguments.site
    if folder.exists() and any(folder.iterdir()):
        raise DataError(f"{folder} holds files already: give another --out or --site, or remove it")
    cases = phantoms.draw(
        arguments.anatomy,
        arguments.count,
        size=size,
        seed=phantoms.site_seed(arguments.seed, arguments.site),
        style=phantoms.site_style(arguments.seed, arguments.site),
    )
    classes = phantoms.classes_of(arguments.anatomy)
    write(cases, folder, classes, len(phantoms.mask_classes_of(arguments.anatomy)))
    counts = {name: sum(case.label == label for case in cases) for label, name in enumerate(classes)}
    summary = {
        "folder": str(folder),
        "images": len(cases),
        "size": list(size),
        "classes": counts,
        "mask_classes": list(phantoms.mask_classes_of(arguments.anatomy)),
    }
    if arguments.json:
        print(json.dumps(summary))
    else:
        said = ", ".join(f"{name} {count}" for name, count in counts.items())
        print(f"wrote {len(cases)} {arguments.anatomy} phantoms of {size[0]}x{size[1]} to {folder}: {said}")
        print(f"masks: data.mask_classes=[{','.join(phantoms.mask_classes_of(arguments.anatomy))}]")
    return 0


def write(cases: "Sequence[Case]", folder: Path, classes: Sequence[str], num_mask_classes: int) -> None:
    """Write images, masks (class values spread over 0 .. 255) and labels.csv."""
    import numpy as np
    from PIL import Image

    from fedmedgen.data.folders import write_table

    spread = np.round(np.arange(num_mask_classes) * 255 / (num_mask_classes - 1)).astype(np.uint8)
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, object]] = []
    for case in cases:
        Image.fromarray(np.round((case.image[0] + 1) * 127.5).astype(np.uint8)).save(folder / "images" / case.name)
        if case.mask is not None:
            Image.fromarray(spread[case.mask]).save(folder / "masks" / case.name)
        name = "" if case.label is None else classes[case.label]
        rows.append({"filename": case.name, "label": case.label, "label_name": name, "patient": case.patient})
    write_table(folder / "labels.csv", rows)


def _size(text: str) -> tuple[int, int]:
    from fedmedgen.errors import SettingsError

    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdigit() and 8 <= int(part) <= 4096 for part in parts):
        raise SettingsError(f"--size must be one number or HEIGHTxWIDTH, from 8 to 4096; got {text!r}")
    return int(parts[0]), int(parts[-1])
