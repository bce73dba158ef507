"""The report's plots: inline SVG whose lines and letters take the page's own colour, in light and in dark."""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

WIDTH_INCHES = 4.9
INK = "#010203"  # stands for the page's text colour until the SVG is written
PALETTE = ("#2f7dd1", "#e07b00", "#1f9d6b", "#c2417c", "#7a62d3", "#8c8a1e", "#0f9fb0", "#b35c33")
MARKERS = "os^Dv*Px"
MOST_NAMED = 8
STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "svg.hashsalt": "fedmedgen",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": INK,
    "grid.alpha": 0.13,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.5,
    "lines.markersize": 3.5,
}


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a plot."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Dot:
    """A measured value with its sd."""

    name: str
    mean: float
    sd: float = 0.0
    colour: int = 0


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A plot of lines, with what its axes mean."""

    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    level: tuple[str, float] | None = None  # a dashed line across, and its name
    from_zero: bool = True


@dataclass(frozen=True, kw_only=True)
class Bars:
    """Horizontal stacked bars: for each part one length a row."""

    x_label: str
    rows: tuple[str, ...]
    parts: Mapping[str, Sequence[float]] = field(default_factory=dict)
    decimals: int = 0
    totals: tuple[str, ...] = ()  # what is written behind each row, where that isn't its length


def lines(panel: Panel) -> Markup:
    """Lines over a whole-numbered axis, one colour and marker each; more than a few go unnamed."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _sheet(2.7)
        named = len(panel.lines) <= MOST_NAMED
        for number, line in enumerate(panel.lines):
            look = PALETTE[number % len(PALETTE)] if named else PALETTE[0]
            mark = MARKERS[number % len(MARKERS)] if named and len(line.x) <= 40 else ""
            axes.plot(line.x, line.y, color=look, marker=mark, label=line.name, alpha=1 if named else 0.4)
        if panel.level:
            axes.axhline(panel.level[1], color=INK, linestyle=(0, (4, 3)), linewidth=1, label=panel.level[0])
        if panel.from_zero:
            axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        places = {place for line in panel.lines for place in line.x}
        if len(places) == 1:
            axes.set_xlim(min(places) - 1, max(places) + 1)
        _name_axes(axes, panel.x_label, panel.y_label)
        if named:
            _legend(figure, axes)
        return _svg(figure, panel.title)


def dots(title: str, x_label: str, values: Sequence[Dot], *, level: tuple[str, float] | None = None) -> Markup:
    """Means with their sd as bars, one row each, first on top."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _sheet(0.75 + 0.32 * len(values) + (0.25 if level else 0))
        for place, dot in enumerate(values):
            colour = PALETTE[dot.colour % len(PALETTE)]
            axes.errorbar(dot.mean, place, xerr=dot.sd, color=colour, marker="o", markersize=6, elinewidth=2)
            axes.annotate(
                f"{dot.mean:.3f}", (dot.mean, place), (0, 6), textcoords="offset points", ha="center", fontsize=8
            )
        if level:
            axes.axvline(level[1], color=INK, linestyle=(0, (4, 3)), linewidth=1, label=level[0])
            _legend(figure, axes)
        low = min([dot.mean - dot.sd for dot in values] + ([level[1]] if level else []))
        axes.set_xlim(max(0.0, low - 0.06), 1.0 + 0.03)
        axes.set_ylim(len(values) - 0.5, -0.7)
        axes.set_yticks(range(len(values)), [dot.name for dot in values])
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(x_label)
        return _svg(figure, title)


def groups(title: str, x_label: str, names: Sequence[str], series: Mapping[str, Sequence[Dot | None]]) -> Markup:
    """For each name one row of means with their sd, one colour and marker a series."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _sheet(1.0 + 0.5 * len(names))
        for number, (name, found) in enumerate(series.items()):
            rows = [(place + 0.15 * (number - (len(series) - 1) / 2), dot) for place, dot in enumerate(found) if dot]
            axes.errorbar(
                [dot.mean for _, dot in rows],
                [place for place, _ in rows],
                xerr=[dot.sd for _, dot in rows],
                color=PALETTE[rows[0][1].colour if rows else number],
                marker=MARKERS[number % len(MARKERS)],
                linestyle="none",
                markersize=5,
                label=name,
            )
        axes.set_xlim(-0.03, 1.03)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_yticks(range(len(names)), list(names))
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(x_label)
        _legend(figure, axes)
        return _svg(figure, title)


def bars(title: str, chart: Bars) -> Markup:
    """Stacked horizontal bars with each row's total written behind it."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _sheet(0.8 + 0.3 * len(chart.rows) + (0.25 if len(chart.parts) > 1 else 0))
        starts = [0.0] * len(chart.rows)
        for number, (name, lengths) in enumerate(chart.parts.items()):
            axes.barh(range(len(chart.rows)), lengths, 0.62, starts, color=PALETTE[number % len(PALETTE)], label=name)
            starts = [start + length for start, length in zip(starts, lengths, strict=True)]
        written = chart.totals or [f"{total:,.{chart.decimals}f}" for total in starts]
        for place, (total, text) in enumerate(zip(starts, written, strict=True)):
            axes.annotate(
                text,
                (total, place),
                (4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
        axes.set_xlim(0, max(starts, default=1) * 1.14 or 1)
        axes.set_ylim(len(chart.rows) - 0.4, -0.6)
        axes.set_yticks(range(len(chart.rows)), chart.rows)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(chart.x_label)
        if len(chart.parts) > 1:
            _legend(figure, axes)
        return _svg(figure, title)


def _sheet(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH_INCHES, height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    return figure, axes


def _name_axes(axes: Axes, x_label: str, y_label: str) -> None:
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)


def _legend(figure: Figure, axes: Axes) -> None:
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper left", ncols=min(3, len(names)), handlelength=1.6)


def _svg(figure: Figure, title: str) -> Markup:
    """The figure as an SVG element without a size of its own, in the page's ink and font."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = text.replace(INK, "currentColor").replace("'DejaVu Sans', ", "")
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r' (xmlns:xlink|xmlns|version)="[^"]*"', "", text)
    name = Markup.escape(title)
    return Markup(text.replace("<svg", f'<svg class="plot" role="img" aria-label="{name}"', 1).strip())
