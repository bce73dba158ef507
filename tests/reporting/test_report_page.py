"""The page drawn from a run folder: what must be on it, and what must never be."""

import argparse
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from fedmedgen.audit.identity import folder_hash
from fedmedgen.cli import report
from fedmedgen.errors import RunError
from fedmedgen.reporting.report import write_report
from fedmedgen.reporting.words import SIDES, task_verdict
from tests.reporting.conftest import metrics, spread

MakeRun = Callable[..., Path]


class Reader(HTMLParser):
    """Collects the text, the addresses and the tags that are opened and not closed."""

    EMPTY = ("meta", "input", "image", "path", "use", "line", "i")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.EMPTY:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def page_of(run: Path) -> str:
    return write_report(run).read_text(encoding="utf-8")


def text_of(page: str) -> str:
    reader = Reader()
    reader.feed(re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL))
    return " ".join(" ".join(reader.words).split())


def test_the_page_is_one_well_formed_file_that_loads_nothing(make_run: MakeRun) -> None:
    page = page_of(make_run())
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    assert reader.addresses
    assert all(address.startswith(("#", "data:image/png;base64,")) for address in reader.addresses)
    assert "http" not in page
    assert "<script" not in page
    assert "@import" not in page
    assert re.findall(r"url\((?!#)", page) == []


def test_the_same_folder_gives_the_same_page(make_run: MakeRun) -> None:
    run = make_run()
    assert page_of(run) == page_of(run)


def test_names_from_outside_are_escaped(make_run: MakeRun) -> None:
    page = page_of(make_run())
    assert "&lt;script&gt;.png" in page
    assert "small &amp; &lt;tidy&gt;" in page


def test_every_number_of_the_study_is_printed(make_run: MakeRun) -> None:
    text = text_of(page_of(make_run()))
    for words in (
        "completed",
        "0.850 ± 0.010",  # tstr
        "0.950 ± 0.010",  # trtr
        "0.700 ± 0.010",  # prior
        "Best single site, real data: site-1",
        "0.400 ± 0.010",  # recall of the rarer class
        "4.0 times the floor",
        "20.0 MB of traffic",
        "weights hold values that are not finite",
        "the file is cut short",
        "None: every site stayed to the end.",
        "there is one site only",
        "abc1234",
    ):
        assert words in text, words


def test_worth_is_said_where_real_data_were_not_asked_for_beside_it() -> None:
    alone = {"tstr": {"auc": {"mean": 0.85, "sd": 0.01}}, "trtr": {"skipped": "not asked for"}}
    assert task_verdict(alone, "classification").endswith("reaches AUC 0.850 on real cases.")


def test_folders_of_the_machine_are_not_on_the_page(make_run: MakeRun) -> None:
    page = page_of(make_run())
    assert "root: lungs" in page
    assert "/home" not in page


def test_plots_have_named_axes_with_units(make_run: MakeRun) -> None:
    page = page_of(make_run())
    for words in (
        "epsilon spent (no unit)",
        "training loss (no unit)",
        "generator round",
        "traffic in the whole run (MB)",
        "time (s)",
        "AUC on held-out real cases (no unit)",
        "Dice on held-out real cases (no unit)",
        "images",
    ):
        assert f">{words}</text>" in page, words


def test_samples_of_every_class_stand_beside_phantoms_with_masks_drawn_on(make_run: MakeRun) -> None:
    page = page_of(make_run())
    for title in ("synthetic, normal, number 1", "synthetic, opacity, number 3", "phantom, opacity, number 8"):
        assert f"<title>{title}</title>" in page
    assert page.count('<path class="mask"') >= 6


def test_the_claim_says_unit_neighbours_delta_sampling_accountant_and_trust(make_run: MakeRun) -> None:
    text = text_of(page_of(make_run()))
    for words in (
        "(5, 1e-5)-differentially private",
        "Add/remove one patient",
        "Poisson",
        "PLD",
        "The server and all other sites may work together",
        "1.25 times",
        "false alarms",
    ):
        assert words in text, words


def test_statistics_are_told_in_the_claim_and_their_samples_have_a_row(make_run: MakeRun) -> None:
    run = make_run()
    without = text_of(page_of(run))
    assert "Cheap release" not in without
    assert "leaves with Gaussian noise" not in without
    found = json.loads((run / "result.json").read_text())
    found["privacy"]["statistics_noise_multiplier"] = 0.875
    found["metrics"]["classification"]["cheap"] = found["metrics"]["classification"]["prior"]
    (run / "result.json").write_text(json.dumps(found))
    settings = yaml.safe_load((run / "settings.yaml").read_text())
    settings |= {"statistics": {"share": 0.5}, "prior": {"roots": ["/public"]}}
    (run / "settings.yaml").write_text(yaml.safe_dump(settings))
    text = text_of(page_of(run))
    assert "people in the public radiographs" in text
    assert "people in the public radiographs" not in without
    for words in (
        "Cheap release (statistics alone)",
        "leaves with Gaussian noise of 0.875",
        "one noisy sum",
        "1.25 times",
    ):
        assert words in text, words


def test_a_run_without_privacy_says_so_and_shows_no_epsilon(make_run: MakeRun) -> None:
    page = page_of(make_run(private=False))
    text = text_of(page)
    assert "no privacy" in text
    assert "Never release" in text
    assert "differentially private" not in text
    assert "epsilon spent" not in page


@pytest.mark.parametrize("changes", [{"public_data": False}, {"simulation": False}])
def test_loss_and_data_of_sites_are_drawn_in_simulations_on_public_data_only(
    make_run: MakeRun, changes: dict[str, bool]
) -> None:
    page = page_of(make_run(**changes))
    assert "training loss (no unit)" not in page
    assert "Data per site" not in page
    assert "are not drawn" in page


@pytest.mark.parametrize("changes", [{"public_data": False}, {"simulation": False}])
def test_nothing_of_single_sites_or_patients_is_drawn_of_data_that_are_not_public(
    make_run: MakeRun, changes: dict[str, bool]
) -> None:
    shapes = {
        "parts": 1, "as_usual": dict.fromkeys(SIDES, 0.9), "empty": dict.fromkeys(SIDES, 0.0),
        "areas": {side: {"mean": 0.3, "sd": 0.05} for side in SIDES}, "distance": 0.1, "edges": [0.0, 0.2, 0.4089],
        "histogram": {side: [0.25, 0.75] for side in SIDES}, "n": dict.fromkeys(SIDES, 40),
        "distinct": dict.fromkeys(SIDES, 40), "commonest": dict.fromkeys(SIDES, 0.025),
    }  # fmt: skip
    known = metrics() | {"mask_shapes": {"lung": shapes}}
    known["classification"]["per_site"]["site-1"]["n_train"] = 8642
    known["classification"]["trtr"]["n_train"] = 9753
    known["classification"]["best_site"]["auc"] = spread(0.7531)
    known["classification"]["rare"] = {
        "class": "opacity", "count": 7654, "n_test": 9, "real_only": spread(0.4), "with_synthetic": spread(0.5),
    }  # fmt: skip
    known["fidelity"]["n"] = 6543
    rejected = [{"file": "DOE_JANE.png", "kind": "mask-unreadable", "reason": "its mask DOE_JANE.png can't be read"}]
    told = ("8,642", "9,753", "0.753", "7,654 real", "6543 images", "DOE_JANE", "Areas of lung", "Site (one seed)")
    run = make_run(metrics=known, rejected=rejected)
    public = page_of(run)
    assert [word for word in told if word not in public] == []
    (run / "result.json").write_text(json.dumps(json.loads((run / "result.json").read_text()) | changes))
    page = page_of(run)
    assert [word for word in told if word in page] == []
    assert "it would tell about single sites" in page
    assert "0.850" in page  # what the synthetic set teaches


def test_what_evaluate_left_later_is_shown_beside_what_a_release_was_worth(make_run: MakeRun) -> None:
    run = make_run(metrics={"statistics": {"slope": 1.0}})
    assert "Not measured" in text_of(page_of(run))
    later = metrics() | {"set": folder_hash(run / "synthetic")}
    (run / "metrics.json").write_text(json.dumps(later))
    assert "0.850" in page_of(run)
    (run / "metrics.json").write_text(json.dumps(later | {"set": "of another"}))
    assert "0.850" not in page_of(run)


def test_an_auc_at_chance_is_called_a_coin(make_run: MakeRun) -> None:
    run = make_run()
    result = json.loads((run / "result.json").read_text())
    result["metrics"]["classification"]["tstr"]["auc"]["mean"] = 0.51
    (run / "result.json").write_text(json.dumps(result))
    assert "hardly better than tossing a coin" in text_of(page_of(run))


def test_a_set_no_better_than_the_prior_is_said_to_add_nothing(make_run: MakeRun) -> None:
    run = make_run()
    result = json.loads((run / "result.json").read_text())
    result["metrics"]["classification"]["prior"]["auc"]["mean"] = 0.85
    (run / "result.json").write_text(json.dumps(result))
    assert "added nothing that this test sees" in text_of(page_of(run))


def test_a_failed_run_still_has_a_page_with_its_reason(make_run: MakeRun) -> None:
    run = make_run(status="failed", reason="two sites were needed, one was left", metrics={}, lost_sites={"b": "gone"})
    for file in ("images", "masks"):
        for picture in (run / "synthetic" / file).iterdir():
            picture.unlink()
    (run / "rounds.csv").unlink()
    text = text_of(page_of(run))
    assert "two sites were needed, one was left" in text
    assert "This run has no synthetic set" in text
    assert "Not measured" in text
    assert "gone" in text


@pytest.mark.parametrize("file", ["settings.yaml", "result.json"])
def test_a_folder_without_its_files_is_refused_by_name(make_run: MakeRun, file: str) -> None:
    run = make_run()
    (run / file).unlink()
    with pytest.raises(RunError, match=file):
        write_report(run)


def test_a_broken_result_is_refused(make_run: MakeRun) -> None:
    run = make_run()
    (run / "result.json").write_text("{")
    with pytest.raises(RunError, match=r"can't read result\.json"):
        write_report(run)


def test_the_command_writes_the_page_and_says_where(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    report.add(parser.add_subparsers())
    run = make_run()
    arguments = parser.parse_args(["report", str(run), "--json"])
    assert arguments.run(arguments) == 0
    assert json.loads(capsys.readouterr().out) == {"report": str(run / "report.html")}
    assert (run / "report.html").is_file()
