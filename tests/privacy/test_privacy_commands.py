"""What `fedmedgen ledger` and `fedmedgen selfcheck` print, and when they refuse."""

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fedmedgen.cli import ledger as ledger_command
from fedmedgen.cli import selfcheck as selfcheck_command
from fedmedgen.errors import LedgerError, SelfCheckError, SettingsError
from fedmedgen.privacy import accountant, kernels, selfcheck
from fedmedgen.privacy.budget import Plan
from fedmedgen.privacy.chain import digest_of
from fedmedgen.privacy.ledger import Ledger, Limit
from fedmedgen.privacy.mechanism import StagePlan

TINY = ["study=demo", "data.size=[16,16]", "generator.channels=[8,8]", "generator.norm_groups=4"]


def call(*words: str) -> int:
    parser = argparse.ArgumentParser()
    subparsers = parser.add_subparsers()
    ledger_command.add(subparsers)
    selfcheck_command.add(subparsers)
    arguments = parser.parse_args(words)
    return int(arguments.run(arguments))


@pytest.fixture
def spent(open_ledger: Callable[[], Ledger], plan: Plan, tmp_path: Path) -> Path:
    ledger = open_ledger()
    limit = Limit(epsilon=10.0, delta=1e-4)
    ledger.open_plan("demo-0", plan.digest, plan.to_mapping(), epsilon=plan.epsilon, delta=plan.delta, limit=limit)
    ledger.reserve("demo-0", plan.digest, "generator", 20, "request")
    return tmp_path / "ledger.jsonl"


@pytest.fixture
def with_statistics() -> Plan:
    shared = {"clip_norm": 1.0, "denominator_patients": 100}
    return Plan(
        (
            StagePlan(name="statistics", sample_rate=1.0, noise_multiplier=20.0, steps=1, **shared),
            StagePlan(name="generator", sample_rate=0.1, noise_multiplier=2.0, steps=60, **shared),
        ),
        1e-5,
    )


@pytest.fixture
def two_runs(spent: Path, open_ledger: Callable[[], Ledger], with_statistics: Plan) -> Path:
    ledger, again = open_ledger(), with_statistics
    limit = Limit(epsilon=10.0, delta=1e-4)
    ledger.open_plan("demo-1", again.digest, again.to_mapping(), epsilon=again.epsilon, delta=1e-5, limit=limit)
    ledger.reserve("demo-1", again.digest, "statistics", 1, "counts")
    ledger.reserve("demo-1", again.digest, "generator", 30, "round 1")
    return spent


def test_show_gives_epsilon_delta_steps_and_stage_of_every_run(
    spent: Path, plan: Plan, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("ledger", "show", str(spent), "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["epsilon"] == plan.epsilon
    assert shown["left"]["epsilon"] == pytest.approx(10 - plan.epsilon)
    (run,) = shown["runs"]
    assert (run["run"], run["epsilon"], run["delta"]) == ("demo-0", plan.epsilon, 1e-5)
    assert run["epsilon_so_far"] == plan.epsilon_after({"generator": 20})
    assert [(s["name"], s["steps"], s["steps_planned"]) for s in run["stages"]] == [
        ("generator", 20, 40),
        ("segmenter", 0, 10),
    ]
    assert 0.01 < run["true_positive_rate_at_1pct_fpr"] < 1


def test_show_says_it_in_words(spent: Path, plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("ledger", "show", str(spent), "--key", str(spent.with_suffix(".key"))) == 0
    text = capsys.readouterr().out
    for words in (
        "2 lines, whole and in order; every MAC is right; the head fits",
        f"epsilon {plan.epsilon:.4g} of 10",
        "generator: 20 of 40 steps, epsilon ",
        "by itself; sample rate 0.05, noise multiplier 1, clip 1, N 100",
        "who accepts 1 % false alarms",
    ):
        assert words in text


def test_verify_passes_a_whole_record_and_says_what_it_could_not_check(
    spent: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spent.with_suffix(".head").rename(spent.with_suffix(".elsewhere"))
    assert call("ledger", "verify", str(spent), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["whole"]
    assert not found["macs_checked"]
    assert not found["head_checked"]


def test_verify_refuses_a_tampered_record(spent: Path) -> None:
    spent.write_bytes(spent.read_bytes().replace(b'"steps":20,"run"', b'"steps":02,"run"'))
    with pytest.raises(LedgerError, match="line 2"):
        call("ledger", "verify", str(spent), "--key", str(spent.with_suffix(".key")))


def test_a_ledger_that_is_not_there_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="there is no ledger at"):
        call("ledger", "show", str(tmp_path / "none.jsonl"))


def test_showing_a_torn_ledger_says_that_all_is_spent_and_changes_nothing(
    spent: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torn = spent.read_bytes() + b'{"n":3'
    spent.write_bytes(torn)
    assert call("ledger", "show", str(spent)) == 0
    text = capsys.readouterr().out
    assert "all that remained is spent" in text
    assert "epsilon 10 of 10, left 0; delta 0.0001 of 0.0001, left 0" in text
    assert spent.read_bytes() == torn


def test_show_gives_every_runs_stages_by_themselves_and_in_all(
    two_runs: Path, plan: Plan, with_statistics: Plan, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("ledger", "show", str(two_runs), "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["epsilon"] == pytest.approx(plan.epsilon + with_statistics.epsilon)
    assert shown["left"]["epsilon"] == pytest.approx(10 - shown["epsilon"])
    first, second = shown["runs"]
    assert (first["epsilon"], second["epsilon"]) == (plan.epsilon, with_statistics.epsilon)
    assert second["epsilon_so_far"] == with_statistics.epsilon_after({"statistics": 1, "generator": 30})
    alone = {stage["name"]: (stage["epsilon_alone_so_far"], stage["epsilon_alone"]) for stage in second["stages"]}
    assert alone == {
        "statistics": (accountant.epsilon(((1.0, 20.0, 1),), 1e-5),) * 2,
        "generator": tuple(accountant.epsilon(((0.1, 2.0, steps),), 1e-5) for steps in (30, 60)),
    }
    assert second["true_positive_rate_at_1pct_fpr"] == accountant.true_positive_rate(with_statistics.parts)


def test_show_says_of_two_runs_what_each_stage_cost_and_that_runs_add(
    two_runs: Path, with_statistics: Plan, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("ledger", "show", str(two_runs)) == 0
    text = capsys.readouterr().out
    alone = [with_statistics.epsilon_after(taken) for taken in ({"generator": 60}, {"generator": 30})]
    rate = accountant.true_positive_rate(with_statistics.parts)
    for words in (
        "epsilons of runs add",
        "run demo-0, plan ",
        f"counts as epsilon {with_statistics.epsilon:.4g}, delta 1e-05: the whole plan",
        f"generator: 30 of 60 steps, epsilon {alone[0]:.4g} ({alone[1]:.4g} so far) by itself",
        f"statistics: 1 of 1 steps, epsilon {with_statistics.epsilon_after({'statistics': 1}):.4g} by itself",
        f"the best attacker who accepts 1 % false alarms recognises that a patient took part in {rate:.1%} of cases",
    ):
        assert words in text


def test_the_totals_rate_is_what_epsilon_and_delta_alone_allow(
    two_runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("ledger", "show", str(two_runs), "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    epsilon, delta = shown["epsilon"], shown["delta"]
    most = min(math.exp(epsilon) * 0.01 + delta, 1 - math.exp(-epsilon) * (0.99 - delta))
    assert shown["true_positive_rate_at_1pct_fpr_at_most"] == pytest.approx(most)
    assert most > max(run["true_positive_rate_at_1pct_fpr"] for run in shown["runs"])


def test_a_plan_torn_by_a_crash_is_shown_with_what_it_counts_for(
    two_runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = two_runs.read_bytes()
    last = whole.splitlines()[-1]
    mac = json.loads(last)["mac"]
    line = f'{{"n":{len(whole.splitlines()) + 1},"prev":"{mac}","event":"open","epsilon":1.25,"delta":2e-05,"ru'
    two_runs.write_bytes(whole + line.encode())
    assert call("ledger", "show", str(two_runs), "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["torn_lines"] == [{"epsilon": 1.25, "delta": 2e-05}]
    assert shown["epsilon"] == pytest.approx(sum(run["epsilon"] for run in shown["runs"]) + 1.25)
    assert call("ledger", "show", str(two_runs)) == 0
    assert "a plan whose line a crash tore counts as epsilon 1.25, delta 2e-05" in capsys.readouterr().out


def test_of_a_ledger_closed_before_its_first_plan_show_does_not_say_that_nothing_was_released(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(b'{"n":1,"prev":"')
    assert call("ledger", "show", str(path), "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["epsilon"], shown["true_positive_rate_at_1pct_fpr_at_most"]) == (None, 1.0)
    assert call("ledger", "show", str(path)) == 0
    text = capsys.readouterr().out
    assert "spent, all runs: unknown" in text
    assert "nothing was released" not in text


def test_show_computes_epsilon_from_steps_and_noise_and_says_where_less_was_counted(
    open_ledger: Callable[[], Ledger], plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limit = Limit(epsilon=10.0, delta=1e-4)
    open_ledger().open_plan("demo-0", plan.digest, plan.to_mapping(), epsilon=0.5, delta=plan.delta, limit=limit)
    assert call("ledger", "show", str(tmp_path / "ledger.jsonl")) == 0
    text = capsys.readouterr().out
    assert (
        f"TOO LITTLE IS COUNTED: computed anew from its steps and noise the plan costs epsilon {plan.epsilon:.4g}"
        in text
    )
    assert call("ledger", "show", str(tmp_path / "ledger.jsonl"), "--json") == 0
    assert json.loads(capsys.readouterr().out)["runs"][0]["epsilon_by_mechanism"] == plan.epsilon


def test_a_plan_that_lacks_its_mechanism_is_refused_by_name(open_ledger: Callable[[], Ledger], tmp_path: Path) -> None:
    mapping = {"stages": [{"name": "generator", "steps": 3}], "delta": 1e-5}
    limit = Limit(epsilon=10.0, delta=1e-4)
    open_ledger().open_plan("demo-0", digest_of(mapping), mapping, epsilon=0.5, delta=1e-5, limit=limit)
    with pytest.raises(LedgerError, match="stage 'generator' of run 'demo-0' lacks clip_norm"):
        call("ledger", "show", str(tmp_path / "ledger.jsonl"))


def test_show_loads_no_network_library(spent: Path) -> None:
    code = (
        "import sys; from fedmedgen.cli.main import main; "
        f"code = main(['ledger', 'show', {str(spent)!r}, '--json']); "
        "sys.exit(code or len({'torch', 'flwr', 'opacus'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_selfcheck_checks_every_engine_on_generator_and_segmenter(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("selfcheck", *TINY, "--json") == 0
    checks = json.loads(capsys.readouterr().out)["checks"]
    assert [(check["model"], check["engine"], check["passed"]) for check in checks] == [
        ("generator", "reference", True),
        ("generator", "opacus", True),
        ("generator", "fused", True),
        ("segmenter", "reference", True),
        ("segmenter", "opacus", True),
        ("segmenter", "fused", True),
    ]


def test_selfcheck_measures_the_kernels_that_it_checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "SECONDS", 1e-3)
    try:
        words = ["privacy.engine=fused", f"runtime.kernel_cache={tmp_path / 'kernels.json'}"]
        assert call("selfcheck", *TINY, *words, "--json") == 0
    finally:
        kernels.keep_in("")
    assert json.loads((tmp_path / "kernels.json").read_text())


def test_selfcheck_fails_when_the_configured_engine_is_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(engine: str, *rest: object, precision: str) -> None:
        raise SelfCheckError(f"engine {engine} disagrees at unet.conv_in.weight")

    monkeypatch.setattr(selfcheck, "check_engine", refuse)
    with pytest.raises(SelfCheckError, match=r"opacus disagrees at unet\.conv_in"):
        call("selfcheck", *TINY, "privacy.engine=opacus")
    assert "WRONG" in capsys.readouterr().out


def test_selfcheck_refuses_an_unknown_setting() -> None:
    with pytest.raises(SettingsError, match="unknown setting"):
        call("selfcheck", "generator.chanels=[8]")
