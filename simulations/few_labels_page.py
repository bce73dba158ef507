"""The page of the few-labels study, from its CSV."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from simulations.few_labels_ablations import ABLATIONS, LABELS, OF, of_row
from simulations.few_labels_rows import ROWS
from simulations.few_labels_tasks import TASKS
from simulations.grid_page import span
from simulations.grid_table import code_commit, machine

COMMAND = "python -m simulations.few_labels --out docs/results"
BASE, TWICE = "scratch", "scratch-2x"
REMARKS = {
    "pairs-": "- pairs-…: not few labels, but the synthetic pairs of a study that learned from all masks of both "
    "sites, those of the patients set apart among them",
    "ptdr-federated-low": "- ptdr-federated-low: its noise levels were chosen after the autoencoder's test results had "
    "been seen; on lungs at 64x64 the patients set apart prefer ptdr-federated-longer",
}
Key = tuple[str, int, int]  # row, labels, draw


def page(rows: Sequence[Mapping[str, Any]], task: str = "lungs") -> Iterator[str]:
    """Dice by row and number of labels, paired gains over scratch with their intervals, sites apart, learning rates."""
    sites = sorted({row["site"] for row in rows if ":" not in row["site"]})
    dice = {site: _by_cell(rows, site, "dice") for site in sites}
    whole = dice.get("all", {})
    names = [name for name in ROWS if any(key[0] == name for key in whole)]
    counts = sorted({key[1] for key in whole})
    known = TASKS[task]
    command = COMMAND if task == "lungs" else f"{COMMAND} --task {task}"
    yield from (f"# Few labels: {task}", "", f"`{command}`", "")
    yield f"- {span(row['date'] for row in rows)}, commits {_commits(rows)}, {machine()}"
    yield f"- `{' '.join(known.words)}`"
    whose = f"{known.labelled_at} alone" if known.labelled_at else "all sites"
    yield f"- labels from {whose}, up to {known.draws} draws; test patients of all sites"
    yield "- equal fine-tuning steps and augmentation for every row (scratch-2x takes twice as many, self-training as"
    yield "  many for its teacher, -fedavg as many at each site); the learning rate of each row is the best of the same"
    yield "  three, at 5 labels of one more draw, on training patients set apart (of which at an edge: see below)"
    yield "- the patients set apart are in no draw; pre-training has their radiographs, as all training patients'"
    yield "  (no test patient's), so that they rank rates of a row well and rows by length of pre-training less well"
    yield "- one pre-training seed a row: intervals are over draws of the labels, not over runs of the pre-training"
    yield from (words for row, words in REMARKS.items() if any(name.startswith(row) for name in names))
    if not whole:
        return
    yield from ("", "Dice, mean over draws (their number), all test cases:", "")
    yield f"| labels | {' | '.join(map(str, counts))} | mean |"
    yield f"|{' --- |' * (len(counts) + 2)}"
    for name in names:
        cells = [_mean([value for key, value in whole.items() if key[:2] == (name, count)]) for count in counts]
        mean = _mean([value for key, value in whole.items() if key[0] == name]) if all(cells) else ""
        yield f"| {name} | {' | '.join(cells)} | {mean} |"
    yield from _gained(whole, names, counts, BASE, "each the mean of its counts, since fewer labels are among more")
    if any(key[0] == TWICE for key in whole):
        yield from _gained(whole, names, counts, TWICE, "each the mean of its counts; scratch with twice the steps")
    sites.remove("all")
    words = "HD95 in pixels, of the masks that are not empty; *missed*: the share of cases in which nothing is found"
    yield from ("", f"By site of the test patients, mean of all cells; {words}:", "")
    yield f"| row | {' | '.join(f'Dice, {site} | HD95, {site} | missed, {site}' for site in sites)} |"
    yield f"|{' --- |' * (3 * len(sites) + 1)}"
    for name in names:
        shown = [cell for site in sites for cell in _of_site(rows, site, name)]
        yield f"| {name} | {' | '.join(shown)} |"
    yield from _ablations(whole)
    rates = {row["row"]: row["rate"] for row in rows if row["site"] == "all"}
    edges = (min(known.rates), max(known.rates))
    told = (f"{name} {float(rates[name]):g}{' (an edge)' * (float(rates[name]) in edges)}" for name in names)
    yield from ("", "Learning rates: " + ", ".join(told) + ".")
    yield from ("", "Pre-trained, or pairs drawn, by `fedmedgen simulate` and:", "")
    yield from (f"- {name}: `{' '.join((*run.common, *run.words))}`" for name, run in known.pretrained.items())


def _commits(rows: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(dict.fromkeys(row["commit"] for row in rows)) or code_commit()


def _gained(
    whole: Mapping[Key, float], names: Sequence[str], counts: Sequence[int], base: str, how: str
) -> Iterator[str]:
    """What each row has over another at the same labels."""
    words = f"Gain over {base} in points of Dice, paired by draw; 95 % interval (t over draws, {how}):"
    yield from ("", words, "", f"| row | {' | '.join(map(str, counts))} | all | draws |")
    yield f"|{' --- |' * (len(counts) + 3)}"
    for name in names:
        if name != base:
            pairs = {count: _gains(whole, name, count, base) for count in counts}
            shown = [f"{np.mean(list(found.values())):+.1f}" if found else "" for found in pairs.values()]
            by_draw = _by_draw(list(pairs.values()))
            yield f"| {name} | {' | '.join(shown)} | {_interval(by_draw)} | {len(by_draw)} |"


def _ablations(whole: Mapping[Key, float]) -> Iterator[str]:
    """What each change of one thing costs or brings."""
    known = [name for name in (OF, *ABLATIONS) if any(key[:2] == (name, LABELS) for key in whole)]
    if len(known) < 2:
        return
    yield from ("", f"One thing changed of a row, at {LABELS} labels; points of Dice against it, paired by draw:", "")
    yield from ("| change | of | Dice, same draws | difference | pairs |", "| --- | --- | --- | --- | --- |")
    for name in known[1:]:
        gains = list(_gains(whole, name, LABELS, base=of_row(name)).values())
        own = [value for key, value in whole.items() if key[:2] == (name, LABELS)]
        yield f"| {name} | {of_row(name)} | {_mean(own)} | {_interval(gains)} | {len(gains)} |"


def _by_cell(rows: Sequence[Mapping[str, Any]], site: str, figure: str) -> dict[Key, float]:
    return {
        (row["row"], int(row["labels"]), int(row["draw"])): float(row[figure])
        for row in rows
        if row["site"] == site and row[figure] not in ("", None)
    }


def _of_site(rows: Sequence[Mapping[str, Any]], site: str, name: str) -> list[str]:
    """Dice, HD95 and the share missed of a row's cells on one site's test patients."""
    return [
        _mean([value for key, value in _by_cell(rows, site, figure).items() if key[0] == name], places=places)
        for figure, places in (("dice", 3), ("hd95", 1), ("missed", 2))
    ]


def _gains(dice: Mapping[Key, float], name: str, count: int, base: str = BASE) -> dict[int, float]:
    """The gain over the base in each draw that has both."""
    found: dict[int, dict[str, float]] = defaultdict(dict)
    for (row, labels, draw), value in dice.items():
        if labels == count:
            found[draw][row] = value
    return {draw: 100 * (both[name] - both[base]) for draw, both in found.items() if name in both and base in both}


def _by_draw(by_count: Sequence[Mapping[int, float]]) -> list[float]:
    """The mean gain of each draw that has all counts which any draw has."""
    known = [gains for gains in by_count if gains]
    draws = set.intersection(*(set(gains) for gains in known)) if known else set()
    return [float(np.mean([gains[draw] for gains in known])) for draw in sorted(draws)]


def _interval(gains: Sequence[float]) -> str:
    if len(gains) < 2:
        return ""
    middle, half = np.mean(gains), stats.t.ppf(0.975, len(gains) - 1) * stats.sem(gains)
    return f"{middle:+.2f} ({middle - half:+.2f} to {middle + half:+.2f})"


def _mean(values: Sequence[float], *, places: int = 3) -> str:
    return f"{np.mean(values):.{places}f} ({len(values)})" if values else ""
