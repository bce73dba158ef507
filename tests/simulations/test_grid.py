"""A grid of studies: one row a cell and seed, whatever fails or breaks off, and a page from the rows alone."""

import csv
import json
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedmedgen.composition import compose
from fedmedgen.data import phantoms
from fedmedgen.data.cases import CaseSet
from fedmedgen.emission.writing import write_set
from fedmedgen.errors import FederationError, SettingsError
from simulations import grid
from simulations.grid_file import load
from simulations.grid_page import paired
from simulations.grid_table import Table, finished_row, measures, plain_words

CELLS = [
    {"name": "ours", "overrides": ["privacy=eps1"], "seeds": [0, 1, 2], "published": 95.6},
    {"name": "cheap", "overrides": ["rounds=1"], "seeds": [0, 1, 2]},
]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs go to a folder of the test's own, at a commit without changes."""
    monkeypatch.setattr(grid, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(grid, "code_commit", lambda: "abc1234")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return written(tmp_path, cells=CELLS)


def written(folder: Path, **words: Any) -> Path:
    path = folder / "trial.yaml"
    given = {"title": "A trial", "common": ["study=demo"], "compare": ["ours", "cheap"], **words}
    path.write_text(yaml.safe_dump(given))
    return path


class Fake:
    """Runs nothing: a result whose TSTR AUC is told by the words."""

    def __init__(self, fail: Sequence[str] = (), interrupt: str = "") -> None:
        self.fail, self.interrupt, self.ran = list(fail), interrupt, []

    def __call__(self, words: Sequence[str], folder: Path) -> dict[str, Any]:
        name = folder.name
        self.ran.append(name)
        (folder / "checkpoint.json").write_text("{}")
        if name == self.interrupt:
            raise KeyboardInterrupt
        if name in self.fail:
            raise FederationError(f"too few\nsites at {folder}/ledger: 1")
        seed = int(words[-1].removeprefix("seed="))
        auc = {"ours": 0.8, "cheap": 0.7}[name.partition("-")[0]] + 0.01 * seed * seed
        return result(auc)


def result(auc: float) -> dict[str, Any]:
    rows = {
        "tstr": {"auc": {"mean": auc, "sd": 0.1}, "accuracy": {"mean": 0.5}, "recall": {"normal": {"mean": 0.25}},
                 "n_train": 9},
        "trtr": {"auc": {"mean": 0.9}, "n_train": 8000},
        "prior": {"skipped": "no prior"},
        "per_site": {"a": {"auc": {"mean": 0.1}}},
    }  # fmt: skip
    privacy = {"epsilon": 0.999, "delta": 1e-5, "unit": "patient", "accountant": "PLD"}
    return {"status": "completed", "privacy": privacy, "sites": {"a": {}, "b": {}}, "seconds": 3.0, "peak_rss_mb": 100,
            "test_cases": 7, "metrics": {"classification": rows}}  # fmt: skip


def run(file: Path, out: Path, *words: str, runner: Any) -> int:
    return grid.main([str(file), "--out", str(out), *words], runner=runner)


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "trial.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_each_cell_and_seed_becomes_one_row_in_the_order_of_the_file(file: Path, tmp_path: Path) -> None:
    fake = Fake()
    assert run(file, tmp_path, runner=fake) == 0
    assert fake.ran == ["ours-0", "ours-1", "ours-2", "cheap-0", "cheap-1", "cheap-2"]
    found = rows(tmp_path)
    assert [f"{row['cell']}-{row['seed']}" for row in found] == fake.ran
    first = found[0]
    wanted = {"grid": "trial", "overrides": "study=demo privacy=eps1", "status": "completed", "attempts": "1",
              "commit": "abc1234", "epsilon": "0.999", "delta": "1e-05", "unit": "patient", "sites": "2",
              "seconds": "3", "peak_rss_mb": "100", "tstr_auc": "0.8", "tstr_recall_normal": "0.25", "tstr_n": "9",
              "trtr_auc": "0.9", "test_cases": "7"}  # fmt: skip
    assert {key: first[key] for key in wanted} == wanted
    assert not [name for name in first if "per_site" in name or "prior" in name]


def test_finished_cells_are_skipped_but_not_those_whose_words_changed(file: Path, tmp_path: Path) -> None:
    run(file, tmp_path, runner=Fake())
    again = Fake()
    assert run(file, tmp_path, runner=again) == 0
    assert again.ran == []
    changed = [CELLS[0], {**CELLS[1], "overrides": ["rounds=2"]}]
    run(written(tmp_path, cells=changed), tmp_path, runner=again)
    assert again.ran == ["cheap-0", "cheap-1", "cheap-2"]
    assert len(rows(tmp_path)) == 9


def test_a_failed_cell_says_why_without_a_folder_and_costs_no_other(file: Path, tmp_path: Path) -> None:
    assert run(file, tmp_path, runner=Fake(fail=["ours-1"])) == 1
    found = rows(tmp_path)
    assert [row["status"] for row in found] == ["completed", "failed", *["completed"] * 4]
    assert found[1]["reason"] == "FederationError: too few sites at ledger: 1"


def test_a_failed_cell_is_run_again_only_with_retry_and_its_attempts_are_counted(file: Path, tmp_path: Path) -> None:
    run(file, tmp_path, runner=Fake(fail=["ours-1"]))
    idle, again = Fake(), Fake()
    assert run(file, tmp_path, runner=idle) == 0
    assert idle.ran == []
    assert run(file, tmp_path, "--retry", runner=again) == 0
    assert again.ran == ["ours-1"]
    assert (rows(tmp_path)[-1]["attempts"], rows(tmp_path)[-1]["status"]) == ("2", "completed")
    assert "6 of 6 runs completed, 0 failed" in page(file, tmp_path)


def test_an_interrupted_grid_keeps_its_rows_and_goes_on_with_the_run_it_was_in(file: Path, tmp_path: Path) -> None:
    assert run(file, tmp_path, runner=Fake(interrupt="ours-1")) == 130
    assert [row["seed"] for row in rows(tmp_path)] == ["0"]
    begun = tmp_path / "runs" / "grid-trial" / "ours-1"
    assert (begun / "checkpoint.json").is_file()
    seen: list[bool] = []

    def runner(words: Sequence[str], folder: Path) -> dict[str, Any]:
        seen.append((folder / "checkpoint.json").is_file())
        return result(0.8)

    assert run(file, tmp_path, runner=runner) == 0
    assert seen == [True, False, False, False, False]
    assert rows(tmp_path)[1]["attempts"] == "2"


@pytest.mark.parametrize("commit", ["fff0000", "abc1234-dirty"])
def test_a_run_of_other_or_unknown_code_starts_afresh(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, commit: str
) -> None:
    run(file, tmp_path, runner=Fake(interrupt="ours-0"))
    monkeypatch.setattr(grid, "code_commit", lambda: commit)
    seen: list[bool] = []

    def runner(words: Sequence[str], folder: Path) -> dict[str, Any]:
        seen.append((folder / "checkpoint.json").is_file())
        return result(0.8)

    run(file, tmp_path, runner=runner)
    assert seen == [False] * 6
    assert rows(tmp_path)[0]["attempts"] == "2"


def test_a_line_cut_short_by_a_kill_is_dropped_and_run_again(file: Path, tmp_path: Path) -> None:
    run(file, tmp_path, runner=Fake())
    path = tmp_path / "trial.csv"
    path.write_text(path.read_text()[:-20])
    again = Fake()
    run(file, tmp_path, runner=again)
    assert again.ran == ["cheap-2"]
    assert len(rows(tmp_path)) == 6


def test_a_measure_seen_for_the_first_time_becomes_a_column_of_all_rows(tmp_path: Path) -> None:
    table = Table.at(tmp_path / "t.csv")
    table.append({"cell": "a", "seed": 0, "status": "completed", "tstr_auc": 0.5})
    table.append({"cell": "b", "seed": 0, "status": "completed", "cheap_auc": 0.25})
    again = Table.at(tmp_path / "t.csv")
    assert [(row["tstr_auc"], row["cheap_auc"]) for row in again.rows] == [("0.5", ""), ("", "0.25")]


def test_dice_and_fidelity_become_columns_too() -> None:
    found = measures({
        "fidelity": {"fd": 12.0, "kid": 0.5, "prior": {"fd": 30.0}, "floor": None},
        "segmentation": {"tstr": {"dice_mean": {"mean": 0.75}, "hd95": None, "n_train": 4}},
        "federated_segmenter": {"dice_mean": 0.5},
    })  # fmt: skip
    wanted = {"tstr_dice": 0.75, "tstr_n": 4, "federated_segmenter_dice": 0.5, "fd": 12.0, "kid": 0.5, "prior_fd": 30.0}
    assert found == wanted
    assert finished_row({"metrics": {"classification": {"skipped": "no label"}}})["epsilon"] is None


def test_what_training_cost_becomes_columns_of_the_table_and_the_page(tmp_path: Path) -> None:
    known = {"stage_seconds": {"data": 9.0, "curriculum": 2.0, "generator": 3.0}, "rounds": 4, "bytes_up": 100,
             "bytes_down": 300, "parameters": 5000}  # fmt: skip
    wanted = {"training_seconds": 5.0, "bytes_per_round": 100, "parameters": 5000}
    assert {name: finished_row(known)[name] for name in wanted} == wanted
    file = written(tmp_path, cells=CELLS)
    run(file, tmp_path, runner=lambda *_: {**result(0.8), **known})
    assert (
        "| ours | 0, 1, 2 | 0.999 | 1e-05 | patient | 5,000 ± 0 | 100 ± 0 | 5 ± 0 | 0 ± 0 | 3 ± 0 | 100 ± 0 |"
        in page(file, tmp_path)
    )


def test_a_cell_tells_the_processors_seconds_where_all_of_them_are_known(file: Path, tmp_path: Path) -> None:
    def busy(_: Sequence[str], folder: Path) -> dict[str, Any]:
        end = time.process_time() + 0.2
        while time.process_time() < end:
            pass
        time.sleep(0.2)
        return result(0.8)

    run(file, tmp_path, runner=Fake(interrupt="ours-0"))
    run(file, tmp_path, runner=busy)
    told = [row["cpu_seconds"] for row in rows(tmp_path)]
    assert told[0] == ""  # it went on from a checkpoint
    assert all(0.2 <= float(seconds) < 0.4 for seconds in told[1:])


def test_a_picture_of_synthetic_cases_stands_on_the_page(tmp_path: Path) -> None:
    def runner(_: Sequence[str], folder: Path) -> dict[str, Any]:
        write_set(CaseSet(tuple(phantoms.draw("chest", 3, size=(16, 16), seed=0)), ("normal", "opacity", "nodule")),
                  folder / "synthetic", datasheet={})  # fmt: skip
        settings = compose(["study=demo", "data.size=[16,16]", "data.mask_classes=[]"])
        (folder / "settings.yaml").write_text(yaml.safe_dump(settings.to_mapping()))
        (folder / "result.json").write_text("{}")
        return result(0.8)

    file = written(tmp_path, cells=CELLS[:1], compare=[], pictures=True)
    run(file, tmp_path, runner=runner)
    assert "![ours](trial-ours.png)" in page(file, tmp_path).splitlines()
    assert (tmp_path / "trial-ours.png").stat().st_size > 100


def page(file: Path, out: Path) -> str:
    assert run(file, out, "--page", runner=Fake(fail=["nothing is run"])) == 0
    return (out / "trial.md").read_text()


def test_the_page_shows_means_paired_differences_and_the_published_figure(file: Path, tmp_path: Path) -> None:
    run(file, tmp_path, runner=Fake())
    lines = page(file, tmp_path).splitlines()
    assert "`python -m simulations.grid trial.yaml --out " in lines[2]
    assert str(tmp_path.parent) not in lines[2]
    assert "| ours | 0, 1, 2 | 0.999 | 1e-05 | patient | 0 ± 0 | 3 ± 0 | 100 ± 0 |" in lines
    assert "| ours | 0.817 ± 0.021 | 0.900 ± 0.000 |" in lines
    assert "| ours − cheap | auc | 3 | +0.100 | 0.000 | +0.100 to +0.100 |" in lines
    assert "| ours | 8,000 ± 0 | 50.0 ± 0.0 | 95.6 |" in lines
    assert "| ours | 0.250 ± 0.000 |" in lines


def test_the_page_names_failures_and_leaves_out_rows_of_other_words(file: Path, tmp_path: Path) -> None:
    run(file, tmp_path, runner=Fake(fail=["cheap-0"]))
    text = page(written(tmp_path, cells=[{**CELLS[0], "overrides": ["privacy=eps3"]}, CELLS[1]]), tmp_path)
    assert "2 of 6 runs completed, 1 failed" in text
    assert "beside 3 of earlier attempts or other words" in text
    assert "- failed: cheap, seed 0, attempt 1: FederationError: too few" in text
    assert "| ours | none yet |" in text


def test_a_side_may_be_another_row_of_the_same_cell(tmp_path: Path) -> None:
    file = written(tmp_path, cells=CELLS, compare=[["ours/trtr", "ours"]])
    run(file, tmp_path, runner=Fake())
    assert "| ours/trtr − ours | auc | 3 | +0.083 |" in page(file, tmp_path)


def test_the_interval_is_students_over_paired_seeds() -> None:
    count, mean, sd, (low, high) = paired({0: 1.0, 1: 2.0, 2: 3.0, 9: 5.0}, {0: 0.5, 1: 1.0, 2: 1.5, 3: 0.0})
    assert (count, mean, sd) == (3, 1.0, 0.5)
    half = 4.302653 * 0.5 / math.sqrt(3)  # the 97.5 % point of t with two degrees of freedom
    assert (low, high) == pytest.approx((1 - half, 1 + half), abs=1e-5)
    assert paired({0: 1.0}, {1: 1.0})[0] == 0
    assert math.isnan(paired({0: 1.0}, {0: 0.5})[3][0])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"cells": [CELLS[0], CELLS[0]]}, "each once"),
        ({"cells": CELLS, "compare": ["ours", "chaep"]}, "compare must be two of the cells"),
        ({"cells": CELLS, "measure": ["auc"]}, "did you mean 'measures'"),
        ({"cells": [{**CELLS[0], "overrides": ["seed=3"]}], "compare": []}, "without seed"),
        ({"cells": [{**CELLS[0], "seeds": []}], "compare": []}, "seeds"),
    ],
)
def test_a_grid_that_makes_no_sense_is_refused(tmp_path: Path, words: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        load(written(tmp_path, **words))


def test_a_folder_of_the_machine_is_taken_out_of_a_reason() -> None:
    assert plain_words("no file at /home/me/runs/x.npz,\n  9/10 done") == "no file at x.npz, 9/10 done"


def test_one_whole_study_runs_as_a_cell(tmp_path: Path) -> None:
    words = ["study=demo", "smoke=true", "rounds=1", "segmenter.rounds=0", "data.size=[16,16]", "emission.count=12"]
    file = written(tmp_path, cells=[{"name": "demo", "overrides": words, "seeds": [3]}], common=[], compare=[])
    assert run(file, tmp_path, runner=grid.simulated) == 0
    (row,) = rows(tmp_path)
    assert (row["status"], row["seed"], row["unit"], row["sites"]) == ("completed", "3", "patient", "3")
    assert 0 < float(row["epsilon"]) <= 10
    assert 0 <= float(row["tstr_auc"]) <= 1
    folder = tmp_path / "runs" / "grid-trial" / "demo-3"
    assert json.loads((folder / "result.json").read_text())["seed"] == 3
    assert str(tmp_path) not in (tmp_path / "trial.csv").read_text()


@pytest.mark.parametrize("name", ["compare-pneumonia", "compare-lungs"])
def test_the_comparison_has_a_cell_of_every_family_at_every_privacy_and_each_composes(name: str) -> None:
    compared = load(Path(__file__).resolve().parents[2] / "simulations" / "grids" / f"{name}.yaml")
    families = {"unet", "dit", "latent", "vae", "gan", "coefficients", "moments"}
    privacies = {"none", "eps10", "eps1"}
    assert {cell.name for cell in compared.cells} == {f"{one}-{other}" for one in families for other in privacies}
    for cell in compared.cells:
        if not cell.name.endswith("eps1"):  # as eps10 but for epsilon
            assert compose(compared.words(cell)).generator.family == cell.name.partition("-")[0]


def test_words_of_the_caller_go_behind_every_cells_own(file: Path, tmp_path: Path) -> None:
    assert run(file, tmp_path, "data.max_patients=9", "rounds=2", runner=Fake()) == 0
    said = {row["cell"]: row["overrides"] for row in rows(tmp_path)}
    assert said["cheap"] == "study=demo rounds=1 data.max_patients=9 rounds=2"
    assert "data.max_patients=9 rounds=2`" in (tmp_path / "trial.md").read_text()
    assert compose(said["cheap"].split()).rounds == 2


def test_a_part_of_the_network_is_compared_with_all_of_it_at_the_same_steps() -> None:
    compared = load(Path(__file__).resolve().parents[2] / "simulations" / "grids" / "partial.yaml")
    for privacy in ("none", "eps10"):
        found = {cell.name: compose(compared.words(cell)) for cell in compared.cells if cell.name.endswith(privacy)}
        full, lora = found[f"full-{privacy}"], found[f"lora-{privacy}"]
        assert (full.generator.trainable, lora.generator.trainable) == ("full", "lora")
        same_sums = replace(lora.privacy, engine=full.privacy.engine)  # engines differ in time alone
        assert replace(lora, generator=replace(lora.generator, trainable="full"), privacy=same_sums) == full
