"""A whole study in one process: the run folder, its claims, and how it goes on after an interruption."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedmedgen.errors import FederationError, RunError, SettingsError
from fedmedgen.privacy import accountant
from fedmedgen.privacy.ledger import Ledger, load_or_create_key
from simulations.run import simulate

Quick = Callable[..., Path]
QUICK = ["study=demo", "smoke=true", "evaluation.enabled=false", "emission.count=6", "data.max_patients=12"]


def weights(run: Path) -> dict[str, np.ndarray]:
    words = json.loads((run / "checkpoint.json").read_text())
    return load_file(run / "checkpoint" / words["arrays"])


def same(first: Path, second: Path) -> bool:
    one, other = weights(first), weights(second)
    return one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)


def result(run: Path) -> dict[str, object]:
    return json.loads((run / "result.json").read_text())


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "rounds.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_run_folder_holds_all_that_a_person_needs(finished: Path) -> None:
    wanted = ("settings.yaml", "result.json", "rounds.csv", "report.html", "generator/model_index.json",
              "generator/README.md", "segmenter/model_index.json", "synthetic/labels.csv", "synthetic/datasheet.json",
              "sites/site-1/ledger.jsonl")  # fmt: skip
    assert not [name for name in wanted if not (finished / name).is_file()]
    assert list((finished / "tensorboard").glob("events.*"))
    assert result(finished)["status"] == "completed"


def test_the_result_measures_the_set_beside_real_data_and_the_prior_alone(finished: Path) -> None:
    metrics = result(finished)["metrics"]
    assert {"tstr", "trtr", "prior", "best_site"} <= set(metrics["classification"])
    assert {"tstr", "trtr", "prior", "best_site"} <= set(metrics["segmentation"])
    assert "floor" in metrics["fidelity"]
    assert metrics["federated_segmenter"]["dice_mean"] >= 0


def test_epsilon_stays_within_the_claim_and_is_what_the_ledger_says(finished: Path) -> None:
    for name, site in result(finished)["sites"].items():
        folder = finished / "sites" / name
        spent = Ledger(
            folder / "ledger.jsonl", key=load_or_create_key(folder / "site.key"), head_path=folder / "ledger.head"
        ).spent()
        (counted,) = spent.plans.values()
        parts = [
            (stage["sample_rate"], stage["noise_multiplier"], counted.reserved[stage["name"]])
            for stage in counted.mapping["stages"]
        ]
        assert site["epsilon"] == pytest.approx(spent.epsilon)
        assert site["epsilon_run"] == accountant.epsilon(tuple(parts), spent.delta)
        assert 9.8 < site["epsilon_run"] <= 10.0


def test_a_run_that_took_fewer_steps_than_planned_says_what_it_spent_and_not_the_target(quick: Quick) -> None:
    run = quick(["rounds=2", "fault.site=site-2", "fault.round=1"])
    short = quick(["rounds=2", "fault.site=site-2", "fault.round=1", "privacy.epsilon=3"])
    for found, target in ((result(run), 10.0), (result(short), 3.0)):
        most = max(site["epsilon_run"] for site in found["sites"].values())
        assert (found["privacy"]["epsilon"], found["privacy"]["epsilon_target"]) == (most, target)
        assert most != target


def test_runs_under_one_ledger_root_share_the_sites_budget(quick: Quick, tmp_path: Path) -> None:
    words = [f"ledger.root={tmp_path / 'ledgers'}", "segmenter.rounds=0"]
    first = quick(words)
    copy = first / "sites" / "site-1" / "ledger.jsonl"
    assert copy.read_bytes() == (tmp_path / "ledgers" / "site-1" / "ledger.jsonl").read_bytes()
    with pytest.raises(FederationError, match="refused-budget"):
        quick([*words, "seed=1", "rounds=1"])


def test_kernels_measured_in_one_run_are_those_of_the_next(quick: Quick, tmp_path: Path) -> None:
    words = [f"runtime.kernel_cache={tmp_path / 'kernels.json'}", "privacy.engine=fused", "segmenter.rounds=0"]
    quick(words)
    found = (tmp_path / "kernels.json").read_bytes()
    assert found
    quick([*words, "seed=1"])
    assert (tmp_path / "kernels.json").read_bytes() == found


def test_no_loss_leaves_a_private_site(finished: Path) -> None:
    assert {row["loss"] for row in rows(finished)} == {""}


def test_a_seeded_run_is_the_same_every_time_and_another_seed_differs(quick: Quick) -> None:
    first = quick()
    assert same(first, quick())
    assert not same(first, quick(["seed=1"]))


def test_every_round_changes_the_weights(quick: Quick) -> None:
    assert all(float(row["update_norm"]) > 0 for row in rows(quick(["privacy=none"])))


@pytest.mark.parametrize("strategy", ["fedadam", "fedprox"])
def test_each_strategy_and_engine_runs_to_the_end(quick: Quick, strategy: str) -> None:
    privacy = ["privacy.engine=opacus"] if strategy == "fedadam" else ["privacy=none"]
    run = quick([f"federation={strategy}", *privacy])
    assert result(run)["status"] == "completed"
    assert result(run)["lost_sites"] == {}


def test_a_site_that_raises_is_named_and_the_rest_go_on(quick: Quick) -> None:
    run = quick(["rounds=4", "fault.site=site-2", "fault.round=2"])
    assert result(run)["status"] == "completed"
    assert list(result(run)["lost_sites"]) == ["site-2"]
    faulty = [row for row in rows(run) if row["status"] != "done"]
    assert [(row["stage"], row["round"], row["site"], row["status"]) for row in faulty] == [
        ("generator", "2", "site-2", "fault")
    ]
    assert result(run)["sites"]["site-2"]["rounds"] == result(run)["sites"]["site-1"]["rounds"] - 1


def test_too_few_survivors_end_the_run_with_the_reason_and_the_round_counts(tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ["rounds=3", "fault.site=site-2", "fault.round=2", "federation.min_sites=3"]
    with pytest.raises(FederationError, match="site-2: fault"):
        simulate([*QUICK, *words], out=str(out))
    assert (result(out)["status"], list(result(out)["lost_sites"])) == ("failed", ["site-2"])
    assert [row["round"] for row in rows(out)] == ["1"] * 3 + ["2"] * 3
    for name, site in result(out)["sites"].items():
        folder = out / "sites" / name
        ledger = Ledger(
            folder / "ledger.jsonl", key=load_or_create_key(folder / "site.key"), head_path=folder / "ledger.head"
        )
        (plan,) = ledger.spent().plans.values()
        assert plan.reserved == {"generator": 4, "segmenter": 0} or plan.reserved == {"generator": 4}
        assert site["epsilon_run"] > 7


def test_fedprox_pulls_private_rounds_too(quick: Quick) -> None:
    words = ["rounds=1", "segmenter.rounds=0", "privacy.generator_steps=3"]
    near = quick([*words, "federation=fedprox", "federation.proximal_mu=1000.0"])
    assert not same(quick(words), near)


def test_a_folder_that_holds_a_run_is_not_overwritten(finished: Path) -> None:
    with pytest.raises(RunError, match="already holds a run"):
        simulate(["study=demo", "smoke=true"], out=str(finished))


def test_resume_needs_a_run_and_takes_no_other_settings(tmp_path: Path, finished: Path) -> None:
    with pytest.raises(RunError, match=r"no settings\.yaml"):
        simulate(resume=str(tmp_path))
    with pytest.raises(SettingsError, match="own settings"):
        simulate(["seed=3"], resume=str(finished))


def kill_after_round(words: list[str], out: Path, rounds: int) -> None:
    """Start a study in a process of its own and kill it once so many rounds are on disk."""
    code = f"from simulations.run import simulate; simulate({words!r}, out={str(out)!r})"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    end = time.monotonic() + 180
    while time.monotonic() < end and process.poll() is None:
        path = out / "checkpoint.json"
        if path.is_file() and json.loads(path.read_text())["round"] >= rounds:
            break
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize("strategy", ["fedavg", "fedadam"])
def test_a_killed_run_resumed_ends_with_the_weights_and_epsilon_of_an_unbroken_one(
    quick: Quick, tmp_path: Path, strategy: str
) -> None:
    words = ["rounds=6", f"federation={strategy}", "privacy.generator_steps=4"]
    unbroken = quick(words)
    out = tmp_path / "run"
    kill_after_round(
        [*QUICK, *words],
        out,
        2,
    )
    assert json.loads((out / "checkpoint.json").read_text())["stage"] == "generator"
    simulate(resume=str(out))
    assert same(unbroken, out)
    for name, site in result(unbroken)["sites"].items():
        assert result(out)["sites"][name]["epsilon"] == site["epsilon"]
        assert result(out)["sites"][name]["epsilon_run"] == site["epsilon_run"]


def test_a_stage_runs_where_its_cases_are_and_says_where_there_are_none(tmp_path: Path) -> None:
    few = ("study=demo", "smoke=true", "privacy=none", "evaluation.enabled=false", "data.labelled_sites=[site-2]")
    run = simulate([*few, "data.labelled=2"], out=str(tmp_path / "run"))
    rows = (run / "rounds.csv").read_text().splitlines()
    assert {row.split(",")[2] for row in rows if row.startswith("segmenter")} == {"site-2"}
    assert len({row.split(",")[2] for row in rows if row.startswith("generator")}) == 3
    with pytest.raises(FederationError, match="no site declares a case for the segmenter"):
        simulate([*few, "data.labelled=0"], out=str(tmp_path / "none"))
