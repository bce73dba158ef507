"""The page of a grid, from its rows alone: means over seeds, and paired differences with their intervals."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import stats

Rows = Sequence[Mapping[str, str]]
DONE = "completed"
LEVEL = 0.95
TRAINED_ON = {
    "tstr": "synthetic (TSTR)",
    "cheap": "cheap release",
    "prior": "prior alone",
    "best_site": "best single site",
    "trtr": "real, all sites (TRTR)",
}
EXTRAS = {"fd": "FD", "kid": "KID", "coverage": "coverage", "parameters": "parameters",
          "bytes_per_round": "bytes a round", "training_seconds": "training, s",
          "cpu_seconds": "processor, s"}  # fmt: skip
MOST_CLASSES = 12


@dataclass(frozen=True)
class Comparison:
    """Two sides, each a cell (its synthetic set) or CELL/ROW (another of its training sets), paired by seed."""

    one: str
    other: str


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What the page of a grid is to show."""

    name: str
    title: str
    note: str
    command: str
    cells: tuple[str, ...]
    wanted: int
    measures: tuple[str, ...]
    comparisons: tuple[Comparison, ...] = ()
    source: str = ""
    published: Mapping[str, float] = field(default_factory=dict)
    pictures: Mapping[str, str] = field(default_factory=dict)  # of synthetic cases: cell and file


def page(shown: Shown, rows: Rows, *, others: int) -> list[str]:
    """How it was run, what it cost, what was measured, what is different from what; `others` are rows not shown."""
    done = [row for row in rows if row["status"] == DONE]
    return [
        f"# {shown.title}",
        "",
        f"`{shown.command}`",
        "",
        f"- {span(row['date'] for row in rows)}, commit {_words(row['commit'] for row in rows)}, "
        f"{_words(row['machine'] for row in rows)}",
        f"- {len(done)} of {shown.wanted} runs completed, {len(rows) - len(done)} failed; every row, with its words, "
        f"is in [{shown.name}.csv]({shown.name}.csv)" + (f", beside {others} of earlier attempts or other words" * bool(
            others
        )),
        "",
        *([*shown.note.strip().splitlines(), ""] if shown.note else []),
        *_cost(shown, done),
        *(line for measure in shown.measures for line in _measure(shown, done, measure)),
        *_recalls(shown, done),
        *_compared(shown, done),
        *_published(shown, done),
        *_pictures(shown),
        *_failed(rows),
    ]  # fmt: skip


def paired(one: Mapping[int, float], other: Mapping[int, float]) -> tuple[int, float, float, tuple[float, float]]:
    """Seeds in both, mean and sd of their differences, and the mean's 95 % t-interval (nan for fewer than two)."""
    seeds = sorted(one.keys() & other.keys())
    differences = np.array([one[seed] - other[seed] for seed in seeds])
    count = len(differences)
    if count < 2:
        return count, float(differences.mean()) if count else math.nan, math.nan, (math.nan, math.nan)
    mean, sd = float(differences.mean()), float(differences.std(ddof=1))
    half = float(stats.t.ppf((1 + LEVEL) / 2, count - 1)) * sd / math.sqrt(count)
    return count, mean, sd, (mean - half, mean + half)


def values(rows: Rows, cell: str, column: str) -> dict[int, float]:
    """A column of a cell's completed rows, by seed."""
    return {int(row["seed"]): float(row[column]) for row in rows if row["cell"] == cell and row.get(column)}


def _cost(shown: Shown, rows: Rows) -> list[str]:
    kept = {key: words for key, words in EXTRAS.items() if any(row.get(key) for row in rows)}
    table = _head("cell", "seeds", "epsilon", "delta", "unit", *kept.values(), "seconds", "peak MB")
    for cell in shown.cells:
        mine = [row for row in rows if row["cell"] == cell]
        claim = [_words(row.get(key) or "none" for row in mine) for key in ("epsilon", "delta", "unit")]
        seeds = ", ".join(sorted((row["seed"] for row in mine), key=int)) or "none yet"
        figures = [_mean(values(rows, cell, key), _short) for key in (*kept, "seconds", "peak_rss_mb")]
        table.append(_line(cell, seeds, *claim, *figures))
    return [*table, ""]


def _measure(shown: Shown, rows: Rows, measure: str) -> list[str]:
    trained = _trained_on(rows, measure)
    if not trained:
        return []
    words = measure.replace("_", " ")
    table = _head(f"{words}, trained on", *(TRAINED_ON.get(name, name.replace("_", " ")) for name in trained))
    for cell in shown.cells:
        table.append(_line(cell, *(_mean(values(rows, cell, f"{name}_{measure}"), _fine) for name in trained)))
    return [*table, ""]


def _trained_on(rows: Rows, measure: str) -> list[str]:
    """The training sets that a measure is known of: the usual ones in their order, then any others."""
    found = dict.fromkeys(
        key.removesuffix(f"_{measure}") for row in rows for key in row if key.endswith(f"_{measure}") and row[key]
    )
    return [*(name for name in TRAINED_ON if name in found), *(name for name in found if name not in TRAINED_ON)]


def _recalls(shown: Shown, rows: Rows) -> list[str]:
    start = "tstr_recall_"
    classes = list(dict.fromkeys(key.removeprefix(start) for row in rows for key in row if key.startswith(start)))
    listed = any(measure.startswith("recall_") for measure in shown.measures)
    if listed or not 1 <= len(classes) <= MOST_CLASSES:
        return []
    table = _head("recall, trained on synthetic", *classes)
    for cell in shown.cells:
        table.append(_line(cell, *(_mean(values(rows, cell, start + name), _fine) for name in classes)))
    return [*table, ""]


def _compared(shown: Shown, rows: Rows) -> list[str]:
    table = _head("difference", "measure", "pairs", "mean", "sd", "95 % interval")
    for pair in shown.comparisons:
        for measure in shown.measures:
            count, mean, sd, (low, high) = paired(*(_side(rows, side, measure) for side in (pair.one, pair.other)))
            if count:
                interval = "-" if math.isnan(low) else f"{low:+.3f} to {high:+.3f}"
                spread = "-" if math.isnan(sd) else f"{sd:.3f}"
                name = f"{pair.one} − {pair.other}"
                table.append(_line(name, measure.replace("_", " "), count, f"{mean:+.3f}", spread, interval))
    if len(table) == 2:
        return []
    note = (
        "Differences are paired by seed; the interval is Student's t over seeds, for each line alone (nothing is "
        "corrected for the number of lines)."
    )
    return [note, "", *table, ""]


def _side(rows: Rows, side: str, measure: str) -> dict[int, float]:
    cell, _, trained = side.partition("/")
    return values(rows, cell, f"{trained or 'tstr'}_{measure}")


def _published(shown: Shown, rows: Rows) -> list[str]:
    if not shown.published:
        return []
    table = _head("cell", "training images", "accuracy here, %", "accuracy published, %")
    for cell, published in shown.published.items():
        accuracy = {seed: 100 * value for seed, value in values(rows, cell, "tstr_accuracy").items()}
        count = _mean(values(rows, cell, "trtr_n"), _short)
        table.append(_line(cell, count, _mean(accuracy, lambda value: f"{value:.1f}"), f"{published:.1f}"))
    return [*([*shown.source.strip().splitlines(), ""] if shown.source else []), *table, ""]


def _pictures(shown: Shown) -> list[str]:
    """Of each cell the first cases of each class, a row a class, masks below their images; synthetic ones alone."""
    return [line for cell, file in shown.pictures.items() for line in (f"**{cell}**", "", f"![{cell}]({file})", "")]


def _failed(rows: Rows) -> list[str]:
    lost = [row for row in rows if row["status"] != DONE]
    return [
        *(f"- failed: {row['cell']}, seed {row['seed']}, attempt {row['attempts']}: {row['reason']}" for row in lost),
        *([""] if lost else []),
    ]


def _mean(found: Mapping[int, float], words: Callable[[float], str]) -> str:
    if not found:
        return "-"
    each = np.array(list(found.values()))
    spread = f" ± {words(float(each.std(ddof=1)))}" if len(each) > 1 else ""
    return words(float(each.mean())) + spread


def _fine(value: float) -> str:
    return f"{value:.3f}"


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _words(found: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(found)) or "-"


def span(dates: Iterable[str]) -> str:
    """The day that runs were measured on, or the first and the last of several."""
    known = sorted(set(dates))
    return "no run yet" if not known else known[0] if len(known) == 1 else f"{known[0]} to {known[-1]}"


def _head(*cells: str) -> list[str]:
    return [_line(*cells), "| --- |" + " --- |" * (len(cells) - 1)]


def _line(*cells: object) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"
