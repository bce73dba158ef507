"""What a run is recorded as in docs/results: a page of figures, and a sheet of synthetic cases. No real image.

python -m simulations.results runs/lungs-0 --command "fedmedgen simulate study=lungs" --out docs/results
"""

import argparse
import datetime
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fedmedgen.data.cases import Case, CaseSet
from fedmedgen.release import evidence
from fedmedgen.reporting.record import read
from fedmedgen.reporting.words import mask_shape
from simulations.run import result_of

COLUMNS, SCALE = 12, 2
Pixels = NDArray[np.uint8]


def record(run: Path, *, command: str, out: Path) -> Path:
    """Write OUT/NAME.md and OUT/NAME.png for a finished run; the page's path."""
    result = result_of(run)
    out.mkdir(parents=True, exist_ok=True)
    synthetic = read(run).synthetic
    if synthetic is not None:
        sheet(synthetic).save(out / f"{run.name}.png", optimize=True)
    page = out / f"{run.name}.md"
    mechanism = evidence.read(run).card.get("mechanism", "")  # as the generator's card states it, stage by stage
    page.write_text("\n".join(lines(result, name=run.name, command=command, mechanism=mechanism)) + "\n")
    return page


def sheet(cases: CaseSet) -> Image.Image:
    """The first cases of each class, a row a class, each image above its mask."""
    labels: list[int | None] = list(range(len(cases.classes))) or [None]
    rows = [[case for case in cases if label is None or case.label == label][:COLUMNS] for label in labels]
    height = max(len(row) for row in rows) and max(_tile(case, cases).shape[0] for row in rows for case in row)
    width = cases.cases[0].image.shape[2]
    page = np.zeros((height * len(rows), width * COLUMNS), np.uint8)
    for number, row in enumerate(rows):
        for place, case in enumerate(row):
            tile = _tile(case, cases)
            page[number * height : number * height + tile.shape[0], place * width : place * width + width] = tile
    return Image.fromarray(page).resize((page.shape[1] * SCALE, page.shape[0] * SCALE), Image.Resampling.NEAREST)


def _tile(case: Case, cases: CaseSet) -> Pixels:
    image: Pixels = np.rint((case.image[0] + 1) * 127.5).astype(np.uint8)
    if case.mask is None:
        return image
    mask = (case.mask.astype(np.float32) * 200 / max(1, len(cases.mask_classes) - 1)).astype(np.uint8)
    return np.concatenate([image, mask])


def lines(result: dict[str, Any], *, name: str, command: str, mechanism: str) -> list[str]:
    """The page: how it was run, what it claims and by which mechanism, what was measured."""
    privacy = result["privacy"]
    claim = "none" if privacy["epsilon"] is None else (
        f"epsilon {privacy['epsilon']:.4g}, delta {privacy['delta']:g}, unit {privacy['unit']}, "
        f"{privacy['accountant']}; {mechanism}"
    )  # fmt: skip
    seconds = ", ".join(f"{stage} {value:.0f}" for stage, value in result["stage_seconds"].items())
    lost = "; ".join(f"{site}: {why}" for site, why in result["lost_sites"].items()) or "none"
    return [
        f"# {name}",
        "",
        f"`{command}`",
        "",
        f"- {datetime.date.today().isoformat()}, commit {result['commit']}, {platform.machine()} "
        f"with {result['cores']} cores, torch {result['machine'].rpartition(' ')[2]}, seed {result['seed']}",
        f"- status {result['status']}, backend {result['backend']}, {result['rounds']} rounds, lost sites: {lost}",
        f"- privacy: {claim}",
        f"- {result['seconds']:.0f} s in all ({seconds}), peak {result['peak_rss_mb']} MB, "
        f"{result['bytes_up'] / 1e6:.1f} MB up, {result['bytes_down'] / 1e6:.1f} MB down",
        "",
        *_sites(result),
        *_fidelity(result["metrics"].get("fidelity", {})),
        *_task(result["metrics"], "classification", ("auc", "accuracy", "ece", "brier"), "recall"),
        *_task(result["metrics"], "segmentation", ("dice_mean", "hd95"), ""),
        *_shapes(result["metrics"].get("mask_shapes", {})),
        f"![synthetic cases]({name}.png)",
    ]


def _sites(result: dict[str, Any]) -> list[str]:
    head = ["| site | declared | training images | classes | epsilon |", "| --- | --- | --- | --- | --- |"]
    data = {row["site"]: row for row in result["data"]}
    rows = []
    for name, site in result["sites"].items():
        row = data.get(name, {})
        classes = ", ".join(f"{key} {value}" for key, value in row.get("classes", {}).items()) or "-"
        epsilon = "none" if site["epsilon_run"] is None else f"{site['epsilon_run']:.3f}"
        rows.append(f"| {name} | {site['patients_declared']} | {row.get('images', '-')} | {classes} | {epsilon} |")
    return [*head, *rows, ""]


def _fidelity(found: dict[str, Any]) -> list[str]:
    if "skipped" in found or not found:
        return [f"Fidelity skipped: {found.get('skipped', 'not asked for')}.", ""]
    head = f"| FD, KID by EfficientNet-Lite0, N = {found['n']} | FD | KID | precision | recall | density | coverage |"
    rows = [head, "| --- |" + " --- |" * 6]
    for name, row in (("synthetic", found), ("prior alone", found.get("prior")), ("real vs real", found.get("floor"))):
        if row:
            figures = " | ".join(
                f"{row[key]:.3g}" for key in ("fd", "kid", "precision", "recall", "density", "coverage")
            )
            rows.append(f"| {name} | {figures} |")
    return [*rows, ""]


def _task(metrics: dict[str, Any], task: str, keys: Sequence[str], by_class: str) -> list[str]:
    found = metrics.get(task, {})
    if "skipped" in found or not found:
        return [f"{task.capitalize()} skipped: {found.get('skipped', 'not asked for')}.", ""]
    shown = [*keys, *([by_class] if by_class else [])]
    tested = next((row["n_test"] for row in found.values() if isinstance(row, dict) and "n_test" in row), "-")
    head = " | ".join([f"{task} of {tested} test cases, trained on", "cases", *shown])
    rows = [f"| {head} |", "| --- | --- |" + " --- |" * len(shown)]
    names = {"tstr": "synthetic (TSTR)", "trtr": "real, all sites (TRTR)", "best_site": "best single site",
             "cheap": "cheap release", "real_and_synthetic": "real and synthetic", "prior": "prior alone"}  # fmt: skip
    for key, words in names.items():
        row = found.get(key, {})
        if "skipped" in row or not row:
            rows.append(f"| {words} | | skipped: {row.get('skipped', 'not measured')} |" + " |" * (len(shown) - 1))
            continue
        site = f", {row['site']}" if "site" in row else ""
        figures = [str(row.get("n_train", "-")), *(_words(row.get(item)) for item in shown)]
        rows.append(f"| {words}{site} | " + " | ".join(figures) + " |")
    if task == "segmentation" and "federated_segmenter" in metrics:
        row = metrics["federated_segmenter"]
        rows.append("| federated segmenter | | " + " | ".join(_words(row.get(item)) for item in shown) + " |")
    return [*rows, ""]


def _shapes(found: dict[str, Any]) -> list[str]:
    if "skipped" in found or not found:
        return []
    return [*(f"- {mask_shape(name, part)}" for name, part in found.items()), ""]


def _words(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, dict) and "mean" in value:
        return f"{value['mean']:.3f} ± {value['sd']:.3f}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_words(item)}" for key, item in value.items())
    return f"{value:.3f}"


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--command", required=True, help="the command that made the run")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    args = parser.parse_args(words)
    sys.stdout.write(f"{record(args.run, command=args.command, out=args.out)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
