"""A benchmark's page: what was found, as Markdown, JSON and a plot."""

import json
from pathlib import Path
from typing import Any

TITLES = {
    "per-patient": "Gradients by patient: what each method costs",
    "sampling": "Sampling: images a second, and what they are worth",
    "rounds": "Federated rounds in one process: seconds and bytes",
}


def written(what: str, found: dict[str, Any], lines: list[str], folder: Path) -> None:
    """`WHAT.md`, `WHAT.json` and `WHAT.png` in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    machine = found["machine"]
    head = [
        f"# {TITLES[what]}",
        "",
        f"`fedmedgen bench {what} --out docs/results`, {machine['date']}, commit {machine['commit']}, torch"
        f" {machine['torch']}, {machine['threads']} thread of {machine['processor']} ({machine['capability']})."
        " Processor time, methods in turn in one process; medians, in brackets the least and largest ratio of a turn.",
        "",
    ]
    (folder / f"{what}.md").write_text("\n".join([*head, *lines, "", f"![plot]({what}.png)", ""]))
    (folder / f"{what}.json").write_text(json.dumps(found, indent=1) + "\n")
    _plot(found, folder / f"{what}.png")


def _plot(found: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    names, unit, values = bars(found)
    figure = Figure(figsize=(7, 0.4 * len(names) + 1), layout="constrained")
    axes = figure.add_subplot()
    drawn = axes.barh(names[::-1], values[::-1], color="#3b6ea5")
    axes.bar_label(drawn, fmt="%.1f", padding=3)
    axes.set_xlabel(unit)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def bars(found: dict[str, Any]) -> tuple[list[str], str, list[float]]:
    """Names, unit and lengths of the bars: the first figure of every method."""
    methods: dict[str, dict[str, float]] = found["methods"]
    unit = next(iter(next(iter(methods.values()))))
    return list(methods), unit.replace("_", " "), [each[unit] for each in methods.values()]
