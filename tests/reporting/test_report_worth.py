"""What the page says of calibration, of the rarest class, and of FID by a network that was supplied."""

import json
from collections.abc import Callable
from pathlib import Path

from fedmedgen.reporting.report import write_report

MakeRun = Callable[..., Path]


def page_with(run: Path, changes: dict[str, object]) -> str:
    file = run / "result.json"
    result = json.loads(file.read_text())
    for place, value in changes.items():
        part = result["metrics"]
        *path, last = place.split(".")
        for name in path:
            part = part[name]
        part[last] = value
    file.write_text(json.dumps(result))
    return write_report(run).read_text()


def test_calibration_and_both_kinds_of_cases_are_in_the_table(make_run: MakeRun) -> None:
    row = {"auc": {"mean": 0.91, "sd": 0.0}, "ece": {"mean": 0.123, "sd": 0.01}, "brier": {"mean": 0.234, "sd": 0.0}}
    page = page_with(make_run(), {"classification.real_and_synthetic": row | {"recall": {}, "n_train": 80}})
    for words in ("Calibration error", "Brier", "0.123 ± 0.010", "0.234", "Real and synthetic together"):
        assert words in page


def test_the_rarest_class_is_a_sentence(make_run: MakeRun) -> None:
    rare = {"class": "opacity", "count": 60, "real_only": {"mean": 0.4}, "with_synthetic": {"mean": 0.55}}
    page = page_with(make_run(), {"classification.rare": rare})
    assert "Of the rarest class, opacity (60 real cases" in page
    assert "40% with real data alone and 55% with synthetic" in page


def test_a_skipped_rare_class_says_nothing(make_run: MakeRun) -> None:
    assert "rarest class" not in page_with(make_run(), {"classification.rare": {"skipped": "none"}})


def test_fid_by_a_supplied_network_is_called_that(make_run: MakeRun) -> None:
    page = page_with(make_run(), {"inception_fid": {"fid": 12.5, "n": 30, "features": 2048}})
    assert "By the Inception network that was supplied, FID is 12.5" in page


def test_the_shapes_of_masks_are_said_of_either_side_and_drawn(make_run: MakeRun) -> None:
    run = make_run()
    lung: dict[str, object] = {
        "parts": 2,
        "as_usual": {"synthetic": 0.66, "real": 0.98},
        "areas": {"synthetic": {"mean": 0.28, "sd": 0.023}, "real": {"mean": 0.252, "sd": 0.058}},
        "distance": 0.43,
        "edges": [0.0, 0.2, 0.4],
        "histogram": {"synthetic": [0.0, 1.0], "real": [0.3, 0.7]},
    }
    page = " ".join(page_with(run, {"mask_shapes": {"lung": lung}}).split())
    assert "66% of the synthetic masks hang together in 2 parts, as 98% of the real ones do" in page
    assert "28.0% of the image (sd 2.3%), that of real ones 25.2% of the image (sd 5.8%)" in page
    assert 'aria-label="lung"' in page
    assert "are different" not in page  # of older runs it isn't known
    lung |= {"n": {"synthetic": 400}, "distinct": {"synthetic": 65}, "commonest": {"synthetic": 0.22}}
    page = " ".join(page_with(run, {"mask_shapes": {"lung": lung}}).split())
    assert "65 of the 400 synthetic masks are different; the commonest is 22.0% of them" in page


def test_without_masks_nothing_is_said_of_their_shapes(make_run: MakeRun) -> None:
    assert "Shapes of the masks" not in page_with(make_run(), {"mask_shapes": {"skipped": "no masks"}})


def test_what_was_measured_is_shown_where_real_data_were_not_asked_for_beside_it(make_run: MakeRun) -> None:
    skipped = {f"{task}.trtr": {"skipped": "not asked for"} for task in ("classification", "segmentation")}
    page = page_with(make_run(), skipped)
    assert "no real cases were at hand" not in page
    assert "0.850 ± 0.010" in page
    assert "not asked for" in page
