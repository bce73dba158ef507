"""Plots and tables, each against a small example."""

import re

import numpy as np
import pytest

from fedmedgen.reporting import figures, grids, tables
from fedmedgen.reporting.figures import Bars, Dot, Line, Panel
from fedmedgen.reporting.record import Round


def row(site: str, number: int, epsilon: float | None = 1.0, stage: str = "generator") -> Round:
    return Round(
        stage=stage, round=number, site=site, status="done", reason="", epsilon=epsilon, loss=0.5,
        bytes_up=2e6, bytes_down=1e6, seconds=1.0,
    )  # fmt: skip


def test_a_plot_takes_the_pages_ink_and_has_no_size_of_its_own() -> None:
    panel = Panel(title="t", x_label="x (s)", y_label="y (m)", lines=(Line(name="a", x=(1, 2), y=(3, 4)),))
    drawn = str(figures.lines(panel))
    head = drawn[: drawn.index(">")]
    assert "viewBox" in head
    assert " width=" not in head
    assert "currentColor" in drawn
    assert "#010203" not in drawn
    assert ">x (s)</text>" in drawn
    assert ">y (m)</text>" in drawn


def test_names_in_a_plot_are_escaped() -> None:
    drawn = str(figures.bars('a"<b>', Bars(x_label="MB", rows=("<i>site</i>",), parts={"up": [1.0]})))
    assert "<i>" not in drawn
    assert 'aria-label="a&#34;&lt;b&gt;"' in drawn


def test_many_lines_go_unnamed_and_few_are_named() -> None:
    def drawn(count: int) -> str:
        found = tuple(Line(name=f"site-{number}", x=(1.0,), y=(float(number),)) for number in range(count))
        return str(figures.lines(Panel(title="t", x_label="x", y_label="y", lines=found)))

    assert "site-2" in drawn(3)
    assert "site-2" not in drawn(40)


def test_sites_that_spend_alike_are_one_line() -> None:
    rows = [row(site, number, float(number)) for number in (1, 2) for site in ("a", "b")]
    assert tables.epsilon_lines(rows) == (Line(name="every site", x=(1.0, 2.0), y=(1.0, 2.0)),)


def test_epsilon_goes_on_from_stage_to_stage_and_a_lost_site_ends_early() -> None:
    rows = [row("a", 1, 1.0), row("b", 1, 1.0), row("a", 1, 2.0, "segmenter")]
    assert tables.epsilon_lines(rows) == (
        Line(name="a", x=(1.0, 2.0), y=(1.0, 2.0)),
        Line(name="b", x=(1.0,), y=(1.0,)),
    )


def test_no_epsilon_gives_no_line() -> None:
    assert tables.epsilon_lines([row("a", 1, None)]) == ()


def test_traffic_adds_up_over_rounds() -> None:
    chart = tables.traffic([row("a", 1), row("a", 2)])
    assert chart.parts == {"sent to the site": [2.0], "sent by the site": [4.0]}


@pytest.mark.parametrize(
    ("value", "printed"), [(None, "–"), (2, "2"), (1234, "1,234"), (0.12345, "0.123"), (1e-5, "1e-5"), (True, "–")]
)
def test_numbers_are_printed_in_few_digits(value: object, printed: str) -> None:
    assert tables.number(value) == printed


@pytest.mark.parametrize(
    ("count", "printed"), [(999, "999 B"), (1500, "1.5 kB"), (74_000_000, "74.0 MB"), (3e12, "3000 GB"), (None, "–")]
)
def test_bytes_are_printed_in_a_unit(count: float | None, printed: str) -> None:
    assert tables.size(count) == printed


@pytest.mark.parametrize(("seconds", "printed"), [(2.25, "2.2 s"), (45, "45 s"), (600, "10 min"), (7200, "2.0 h")])
def test_times_are_printed_in_a_unit(seconds: float, printed: str) -> None:
    assert tables.duration(seconds) == printed


def test_a_mask_becomes_one_closed_outline_a_class() -> None:
    mask = np.zeros((8, 8), np.uint8)
    mask[2:4, 2:4] = 1
    mask[5:8, 5:8] = 2
    found = grids.outlines(mask)
    assert [colour for _, colour in found] == list(grids.MASK_COLOURS[:2])
    assert all(path.startswith("M") and path.endswith("Z") and path.count("M") == 1 for path, _ in found)
    # the first structure covers pixels 2 and 3: its outline crosses from 2 to 4
    numbers = [float(word) for word in found[0][0].strip("MZ").replace("L", " ").split()]
    assert (min(numbers), max(numbers)) == (2.0, 4.0)


def test_an_empty_mask_has_no_outline() -> None:
    assert grids.outlines(np.zeros((4, 4), np.uint8)) == []


def test_dots_of_skipped_rows_are_left_out() -> None:
    task = {"trtr": {"auc": {"mean": 0.9, "sd": 0.1}}, "tstr": {"skipped": "why"}}
    assert tables.utility_dots(task, "auc") == [Dot(name="Real data", mean=0.9, sd=0.1, colour=2)]
    assert tables.utility_rows(task, ["auc"])[2] == ["Synthetic set (TSTR)", "–", "why"]


def test_a_single_point_stands_on_a_whole_number() -> None:
    panel = Panel(title="t", x_label="round", y_label="y", lines=(Line(name="a", x=(1.0,), y=(2.0,)),))
    ticks = re.findall(r">(\d+(?:\.\d+)?)</text>", str(figures.lines(panel)))
    assert "0.98" not in ticks
    assert "1" in ticks


def test_a_bar_may_say_another_number_than_its_length() -> None:
    drawn = str(figures.bars("t", Bars(x_label="x", rows=("floor",), parts={"kid": [0.0]}, totals=("-1.31",))))
    assert ">-1.31</text>" in drawn


def test_the_classes_are_those_of_the_first_row_that_was_measured() -> None:
    value = {"mean": 0.9, "sd": 0.1}
    task = {"trtr": {"skipped": "not asked for"}, "tstr": {"recall": {"normal": value}}}
    assert tables.class_dots(task, "recall")[0] == ["normal"]
    assert tables.class_rows(task, "recall") == [["normal", "–", "–", "0.900 ± 0.100", "–"]]
