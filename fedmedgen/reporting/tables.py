"""The report's numbers: what a run measured, as rows of text and as dots and lines for the plots."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fedmedgen.reporting.figures import Bars, Dot, Line
from fedmedgen.reporting.record import Record, Round

ROWS = (
    ("trtr", "Real data, all sites (TRTR)"),
    ("best_site", "Best single site, real data"),
    ("tstr", "Synthetic set (TSTR)"),
    ("real_and_synthetic", "Real and synthetic together"),
    ("cheap", "Cheap release (statistics alone)"),
    ("prior", "Prior alone (no patient)"),
)
COLUMNS = {
    "trtr": "Real, all sites",
    "best_site": "Best site",
    "tstr": "Synthetic",
    "real_and_synthetic": "Both",
    "cheap": "Cheap release",
    "prior": "Prior alone",
}
COLOURS = {"trtr": 2, "best_site": 4, "tstr": 0, "cheap": 5, "prior": 1, "real_and_synthetic": 3}
OPTIONAL = ("cheap", "real_and_synthetic")
NONE = "–"
Spread = Mapping[str, float] | None


def spread(value: Spread, decimals: int = 3) -> str:
    """Mean and sd in print."""
    if not value:
        return NONE
    return f"{value['mean']:.{decimals}f} ± {value['sd']:.{decimals}f}"


def number(value: Any, digits: int = 3) -> str:
    """A number in few digits, a dash for none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return NONE
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{digits}g}".replace("e-0", "e-")


def size(count: Any) -> str:
    """Bytes in a unit that a person reads."""
    if not isinstance(count, (int, float)):
        return NONE
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            return f"{value:.0f} {unit}" if value >= 100 or unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return NONE


def duration(seconds: Any) -> str:
    """Seconds in a unit that a person reads."""
    if not isinstance(seconds, (int, float)):
        return NONE
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def measured(task: Mapping[str, Any], row: str) -> Mapping[str, Any] | None:
    """A row of a task's results, or None if it was skipped or isn't there."""
    found = task.get(row)
    return found if isinstance(found, Mapping) and "skipped" not in found else None


def first_measured(task: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The first row of ROWS that was measured, which knows the classes; None if none was."""
    return next((row for key, _ in ROWS if (row := measured(task, key))), None)


def rows_of(task: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The rows of ROWS, the optional ones only where a study has them."""
    return [(key, title) for key, title in ROWS if key not in OPTIONAL or key in task]


def utility_rows(task: Mapping[str, Any], names: Sequence[str]) -> list[list[str]]:
    """One line a row of ROWS: its name, the values called `names`, training cases or why it was skipped."""
    table = []
    for key, title in rows_of(task):
        row = task.get(key) or {}
        if key == "best_site" and row.get("site"):
            title = f"{title}: {row['site']}"
        if not row or "skipped" in row:
            table.append([title, *[NONE] * len(names), str(row.get("skipped", "not measured"))])
        else:
            decimals = {name: 2 if name == "hd95" else 3 for name in names}
            values = [spread(row.get(name), decimals[name]) for name in names]  # older runs lack some
            table.append([title, *values, number(row.get("n_train"))])
    return table


def class_rows(task: Mapping[str, Any], name: str) -> list[list[str]]:
    """One line a class, one column a row of ROWS: recall or Dice for each class."""
    first = first_measured(task)
    if first is None or not isinstance(first.get(name), Mapping):
        return []
    rows = {key: measured(task, key) for key, _ in rows_of(task)}
    return [[label, *[spread((row or {}).get(name, {}).get(label)) for row in rows.values()]] for label in first[name]]


def _short(title: str) -> str:
    return title.split(",")[0].split(" (")[0]


def utility_dots(task: Mapping[str, Any], name: str) -> list[Dot]:
    """The value called `name` of each measured row."""
    found = []
    for key, title in rows_of(task):
        row = measured(task, key)
        if row and row.get(name):
            value = row[name]
            found.append(Dot(name=_short(title), mean=value["mean"], sd=value["sd"], colour=COLOURS[key]))
    return found


def class_dots(task: Mapping[str, Any], name: str) -> tuple[list[str], dict[str, list[Dot | None]]]:
    """The classes, and for each measured row the value called `name` of each class."""
    first = first_measured(task)
    classes = list((first or {}).get(name) or {})
    series: dict[str, list[Dot | None]] = {}
    for key, title in rows_of(task):
        row = measured(task, key)
        if row is not None:
            values = [row[name].get(label) for label in classes]
            series[_short(title)] = [
                Dot(name=label, mean=value["mean"], sd=value["sd"], colour=COLOURS[key]) if value else None
                for label, value in zip(classes, values, strict=True)
            ]
    return classes, series


def epsilon_lines(rounds: Iterable[Round]) -> tuple[Line, ...]:
    """Epsilon spent so far by each site, over all rounds of all stages in the order of the file."""
    rows = list(rounds)
    places = {step: place + 1 for place, step in enumerate(dict.fromkeys((row.stage, row.round) for row in rows))}
    return _merged(_by_site((row.site, places[row.stage, row.round], row.epsilon) for row in rows))


def _merged(found: tuple[Line, ...]) -> tuple[Line, ...]:
    """Lines that lie on each other as one, named after all their sites."""
    names: dict[tuple[tuple[float, ...], tuple[float, ...]], list[str]] = {}
    for line in found:
        names.setdefault((line.x, line.y), []).append(line.name)
    if len(names) == 1 and len(found) > 1:
        return (Line(name="every site", x=found[0].x, y=found[0].y),)
    return tuple(Line(name=", ".join(sites), x=x, y=y) for (x, y), sites in names.items())


def loss_lines(rounds: Iterable[Round], stage: str) -> tuple[Line, ...]:
    """Training loss of each site over the rounds of one stage."""
    return _by_site((row.site, row.round, row.loss) for row in rounds if row.stage == stage)


def stages(rounds: Iterable[Round]) -> list[str]:
    """Names of the stages in their order."""
    return list(dict.fromkeys(row.stage for row in rounds))


def _by_site(points: Iterable[tuple[str, int, float | None]]) -> tuple[Line, ...]:
    sites: dict[str, list[tuple[float, float]]] = {}
    for site, place, value in points:
        if value is not None:
            sites.setdefault(site, []).append((float(place), value))
    return tuple(
        Line(name=site, x=tuple(x for x, _ in pairs), y=tuple(y for _, y in pairs))
        for site, pairs in sorted(sites.items())
    )


def rejected_replies(rounds: Iterable[Round]) -> list[list[str]]:
    """Replies that the server could not use: stage, round, site, what happened, why."""
    return [[row.stage, str(row.round), row.site, row.status, row.reason] for row in rounds if row.reason]


def traffic(rounds: Iterable[Round]) -> Bars:
    """Megabytes sent and received by each site in the whole run."""
    up: dict[str, float] = {}
    down: dict[str, float] = {}
    for row in rounds:
        up[row.site] = up.get(row.site, 0.0) + row.bytes_up / 1e6
        down[row.site] = down.get(row.site, 0.0) + row.bytes_down / 1e6
    names = tuple(sorted(up))
    parts = {"sent to the site": [down[name] for name in names], "sent by the site": [up[name] for name in names]}
    return Bars(x_label="traffic in the whole run (MB)", rows=names, parts=parts, decimals=1)


def stage_time(record: Record) -> Bars:
    """Seconds of each stage."""
    seconds = {str(name): float(value) for name, value in record.part("stage_seconds").items()}
    return Bars(x_label="time (s)", rows=tuple(seconds), parts={"time": list(seconds.values())})


def site_data(record: Record) -> Bars | None:
    """Images per class at each site; only where the site's data may be shown."""
    rows = record.result.get("data")
    if not record.shows_sites or not isinstance(rows, list) or not rows:
        return None
    counts = [row.get("classes") or {} for row in rows]
    names = dict.fromkeys(name for row in counts for name in row)
    parts = {name: [float(row.get(name, 0)) for row in counts] for name in names}
    if any(row.get("unlabelled") for row in rows) or not parts:
        parts["no label"] = [float(row.get("images", 0)) - sum(row.get("classes", {}).values()) for row in rows]
    return Bars(x_label="images", rows=tuple(str(row.get("site")) for row in rows), parts=parts)
