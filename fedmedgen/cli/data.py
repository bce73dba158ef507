"""`fedmedgen data check DIR`: what is there, and each bad file with its reason."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedmedgen.data.cases import CaseSet
    from fedmedgen.settings import DataSettings

EXAMPLE = """examples:
  fedmedgen data check /data/chest
  fedmedgen data check /data/teeth data.size=[64,128] data.mask_classes=[background,caries]
  fedmedgen data check /data/covid data.columns.patient=patient_id --json"""


def add(subparsers: "argparse._SubParsersAction[Any]") -> None:
    """Plug the command into the program."""
    parser = subparsers.add_parser(
        "data",
        help="look at a data set: what is usable, what is set aside and why",
        description="Read a data set as a study would: cases, sites, labels, masks, patients, and each bad file with "
        "its reason. Exit code 0 if enough is usable, bad files or not; 1 if too little is. Nothing is changed.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("action", choices=("check",), help="what is there")
    parser.add_argument("folder", metavar="DIR", type=Path, help="a folder of sites, one site, a DICOM tree or an npz")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, as for simulate study=folder")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Read everything, say what was found, and refuse if too little is usable."""
    from dataclasses import replace

    from fedmedgen.composition import compose
    from fedmedgen.data import sources
    from fedmedgen.errors import DataError

    words = list(arguments.overrides)
    if not any(word.startswith("study=") for word in words):
        words.insert(0, "study=folder")
    settings = compose(words)
    data = replace(settings.data, root=str(arguments.folder))
    guessed = () if data.mask_classes else sources.guess_mask_classes(data)
    cases = sources.scan(replace(data, mask_classes=data.mask_classes or guessed), seed=settings.seed)
    try:
        sources.require_enough(cases, data)
        refusal = None
    except DataError as error:
        refusal = error
    found = _found(cases, data, guessed)
    if arguments.json:
        print(json.dumps({**found, "usable": refusal is None}))
    else:
        print("\n".join(_words(found)))
    if refusal is not None:
        raise refusal
    return 0


def _found(cases: "CaseSet", data: "DataSettings", guessed: tuple[str, ...]) -> dict[str, Any]:
    from fedmedgen.data import summary

    sites = summary.table({site: cases.of_site(site) for site in cases.sites})
    splits = {split: len(cases.of_split(split)) for split in ("train", "val", "test")}
    notes = summary.notes(cases)
    if guessed:
        notes.append(f"masks hold {len(guessed)} values: name them with data.mask_classes to train on them")
    return {
        "root": data.root,
        "cases": len(cases),
        "patients": len(cases.by_patient()),
        "unit": cases.unit,
        "classes": list(cases.classes),
        "mask_classes": list(cases.mask_classes),
        "size": list(data.size),
        "splits": splits,
        "sites": sites,
        "notes": notes,
        "rejected": [{"file": bad.file, "kind": bad.kind, "reason": bad.reason} for bad in cases.rejected],
    }


def _words(found: dict[str, Any]) -> list[str]:
    unit = "patients" if found["unit"] == "patient" else "images as units (no patient names)"
    splits = ", ".join(f"{name} {count}" for name, count in found["splits"].items() if count)
    lines = [
        f"{found['cases']} cases of {found['patients']} {unit}, {len(found['sites'])} sites ({splits or 'nothing'})",
        f"classes: {', '.join(found['classes']) or 'none'}; masks: {', '.join(found['mask_classes']) or 'none'}",
    ]
    for row in found["sites"]:
        counts = {**row["classes"], "unlabelled": row["unlabelled"]}
        labels = ", ".join(f"{name} {count}" for name, count in counts.items() if count)
        lines.append(
            f"  {row['site']}: {row['images']} images, {row['patients']} units, {row['masks']} masks; {labels}"
        )
    lines += [f"note: {note}" for note in found["notes"]]
    lines.append(f"{len(found['rejected'])} files set aside" + (":" if found["rejected"] else ""))
    lines += [f"  {bad['file']}: {bad['reason']} [{bad['kind']}]" for bad in found["rejected"]]
    return lines
