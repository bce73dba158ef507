"""The report's section on worth: what the synthetic set teaches, and how near it is to real images."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from markupsafe import Markup

from fedmedgen.reporting import figures, tables, words
from fedmedgen.reporting.figures import Bars
from fedmedgen.reporting.record import Record
from fedmedgen.reporting.tables import NONE, measured, number, spread


def column_names(task: Mapping[str, Any]) -> list[str]:
    """A short name for each row of the tables."""
    return [tables.COLUMNS[key] for key, _ in tables.rows_of(task)]


def classification(record: Record) -> dict[str, Any]:
    """AUC, accuracy and recall of each class."""
    task = record.metrics.get("classification") or {}
    found = _task(task, ("auc", "accuracy", "ece", "brier"), "classification")
    if found.get("skipped"):
        return found
    found |= {
        "head": ["Trained on", "AUC", "Accuracy", "Calibration error", "Brier", "Cases"],
        "reading": f"{found['reading']} {words.rare(task)}".strip(),
        "plot": figures.dots(
            "AUC", "AUC on held-out real cases (no unit)", tables.utility_dots(task, "auc"), level=("coin", 0.5)
        ),
        "plot_words": "Area under the ROC curve on held-out real cases. Bars: one sd over seeds; dashed: a coin.",
        "class_plot": figures.groups(
            "Recall", "recall on held-out real cases (no unit)", *tables.class_dots(task, "recall")
        ),
        "class_plot_words": "Share of the real cases of each class that are found: look at the rare ones.",
        "class_rows": tables.class_rows(task, "recall"),
        "class_head": ["Recall of", *column_names(task)],
        "meanings": ["auc", "recall", "calibration", *(["cheap"] if "cheap" in task else [])],
    }
    return found | _sites_alone(task, "auc", "AUC")


def segmentation(record: Record) -> dict[str, Any]:
    """Dice and HD95."""
    task = record.metrics.get("segmentation") or {}
    found = _task(task, ("dice_mean", "hd95"), "segmentation")
    if found.get("skipped"):
        return found
    federated = measured(record.metrics, "federated_segmenter")
    if federated:
        value, far = federated.get("dice_mean"), federated.get("hd95")
        found["rows"].append(["Federated segmenter of this run", _plain(value), _plain(far, 2), NONE])
    found |= {
        "head": ["Trained on", "Dice", "HD95 (pixels)", "Cases"],
        "plot": figures.dots("Dice", "Dice on held-out real cases (no unit)", tables.utility_dots(task, "dice_mean")),
        "plot_words": "Overlap with true masks of held-out real cases, mean over mask classes. Bars: one sd.",
        **_mask_plot(task),
        "class_rows": tables.class_rows(task, "dice") if len(record.settings.data.mask_classes) > 2 else [],
        "class_head": ["Dice of", *column_names(task)],
        "meanings": ["dice", *(["cheap"] if "cheap" in task else [])],
    }
    return found | _sites_alone(task, "dice_mean", "Dice")


def mask_shapes(record: Record) -> dict[str, Any]:
    """Whether synthetic masks look like real ones: their parts and areas, a plot for each class."""
    found = record.metrics.get("mask_shapes") or {}
    if not found or "skipped" in found:
        return {"skipped": str(found.get("skipped", "no real masks were at hand"))}
    return {
        "skipped": "",
        "sentences": [words.mask_shape(name, part) for name, part in found.items()],
        "plots": [
            (_areas(name, part), f"Areas of {name}: synthetic masks beside real ones.") for name, part in found.items()
        ],
    }


def _areas(name: str, part: Mapping[str, Any]) -> Markup:
    middles = tuple(100 * (low + high) / 2 for low, high in pairwise(part["edges"]))
    lines = tuple(
        figures.Line(name=title, x=middles, y=tuple(100 * value for value in part["histogram"][side]))
        for side, title in (("real", "Real"), ("synthetic", "Synthetic"))
    )
    panel = figures.Panel(title=name, x_label=f"area of {name} (% of the image)", y_label="masks (%)", lines=lines)
    return figures.lines(panel)


def _mask_plot(task: Mapping[str, Any]) -> dict[str, Any]:
    """Dice of each mask class, where there is more than one."""
    names, series = tables.class_dots(task, "dice")
    if len(names) < 2:
        return {}
    plot = figures.groups("Dice by mask class", "Dice on held-out real cases (no unit)", names, series)
    return {"class_plot": plot, "class_plot_words": "Overlap with the true masks, for each mask class."}


def _plain(value: Any, decimals: int = 3) -> str:
    return spread(value, decimals) if isinstance(value, Mapping) else NONE if value is None else f"{value:.{decimals}f}"


def _task(task: Mapping[str, Any], names: tuple[str, ...], name: str) -> dict[str, Any]:
    title = name.capitalize()
    if not task or "skipped" in task or tables.first_measured(task) is None:
        return {"title": title, "skipped": str(task.get("skipped", "no real cases were at hand"))}
    reading = words.task_verdict(task, name) or "The synthetic set could not be measured; the table says why."
    return {
        "title": title,
        "skipped": "",
        "reading": reading,
        "rows": tables.utility_rows(task, names),
        "class_plot": None,
    }


def _sites_alone(task: Mapping[str, Any], key: str, title: str) -> dict[str, Any]:
    alone = task.get("per_site") or {}
    rows = [
        [name, number((row.get(key) or {}).get("mean")), number(row.get("n_train"))]
        if "skipped" not in row
        else [name, NONE, row["skipped"]]
        for name, row in alone.items()
    ]
    return {"site_head": ["Site (one seed)", title, "Cases"], "site_rows": rows}


def fidelity(record: Record) -> dict[str, Any]:
    """FD, KID and the areas, with the floor under them."""
    near = record.metrics.get("fidelity") or {}
    if "fd" not in near:
        return {"skipped": str(near.get("skipped", "no real cases were at hand"))}
    names = ("fd", "kid", "precision", "recall", "density", "coverage")
    rows = [
        ("Real against real (floor)", near.get("floor")),
        ("Synthetic set", near),
        ("Prior alone", near.get("prior")),
    ]
    measures = [(title, row) for title, row in rows if row]
    sides = f", with {near['n']} images on each side" if "n" in near else ""
    ratio = near["fd"] / near["floor"]["fd"] if near["floor"]["fd"] > 0 else float("inf")
    return {
        "skipped": "",
        "plots": [_distances(measures, name) for name in ("fd", "kid")],
        "reading": f"FD is {number(near['fd'])}, {ratio:.1f} times the floor of {number(near['floor']['fd'])}"
        f"{sides}.{_inception(record)}",
        "head": ["Images", "FD", "KID", "Precision", "Recall", "Density", "Coverage"],
        "rows": [[title, *[number((row or {}).get(name)) for name in names]] for title, row in rows],
    }


def _inception(record: Record) -> str:
    found = record.metrics.get("inception_fid") or {}
    return f" By the Inception network that was supplied, FID is {number(found['fid'])}." if "fid" in found else ""


def _distances(measures: Sequence[tuple[str, Mapping[str, Any]]], name: str) -> tuple[Markup, str]:
    """One kind of distance, a bar for each set of images."""
    rows = tuple(title.split(" (")[0] for title, _ in measures)
    chart = Bars(
        x_label=f"{name.upper()} to real images (no unit, smaller is nearer)",
        rows=rows,
        parts={name: [max(0.0, float(row[name])) for _, row in measures]},
        totals=tuple(number(row[name]) for _, row in measures),
    )
    return figures.bars(name.upper(), chart), f"{name.upper()} by EfficientNet-Lite0 features; the floor is on top."
