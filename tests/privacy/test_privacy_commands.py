"""What `fedmedgen ledger` and `fedmedgen selfcheck` print, and when they refuse."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fedmedgen.cli import ledger as ledger_command
from fedmedgen.cli import selfcheck as selfcheck_command
from fedmedgen.errors import LedgerError, SelfCheckError, SettingsError
from fedmedgen.privacy import selfcheck
from fedmedgen.privacy.budget import Plan
from fedmedgen.privacy.ledger import Ledger, Limit

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
        "generator: 20 of 40 steps, sample rate 0.05, noise multiplier 1",
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
    assert "all that remained is spent" in capsys.readouterr().out
    assert spent.read_bytes() == torn


def test_selfcheck_checks_both_engines_on_generator_and_segmenter(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("selfcheck", *TINY, "--json") == 0
    checks = json.loads(capsys.readouterr().out)["checks"]
    assert [(check["model"], check["engine"], check["passed"]) for check in checks] == [
        ("generator", "reference", True),
        ("generator", "opacus", True),
        ("segmenter", "reference", True),
        ("segmenter", "opacus", True),
    ]


def test_selfcheck_fails_when_the_configured_engine_is_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(engine: str, *rest: object) -> None:
        raise SelfCheckError(f"engine {engine} disagrees at unet.conv_in.weight")

    monkeypatch.setattr(selfcheck, "check_engine", refuse)
    with pytest.raises(SelfCheckError, match=r"opacus disagrees at unet\.conv_in"):
        call("selfcheck", *TINY, "privacy.engine=opacus")
    assert "WRONG" in capsys.readouterr().out


def test_selfcheck_refuses_an_unknown_setting() -> None:
    with pytest.raises(SettingsError, match="unknown setting"):
        call("selfcheck", "generator.chanels=[8]")
