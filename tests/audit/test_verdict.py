"""What an audit's figures come to in words, and what of them leaves a site."""

from typing import Any

import pytest

from fedmedgen.audit.verdict import leaving, verdict
from fedmedgen.gate_settings import GateSettings

GATE = GateSettings()
COPIES = {"nearer_to_train": 0.51, "holdout_baseline": 0.49, "chance": [0.46, 0.56]}


def figures(**changes: Any) -> dict[str, Any]:
    attack = {"auc": 0.52, "tpr_at_1pct_fpr": None, "ci": {"auc": [0.45, 0.58]}}
    whole = {
        "claim": {"epsilon": 1.0, "delta": 1e-5, "unit": "patient"},
        "membership": {"loss": attack, "SimA": attack | {"auc": 0.5}},
        "canaries": {
            "count": 400, "epsilon_lower_bound": 0.2, "confidence": 0.95, "ceiling": 3.4, "guesses": 50, "correct": 30,
        },
        "copies": {"features": COPIES, "pixels": COPIES, **COPIES, "n": 100},
    }  # fmt: skip
    return whole | changes


def words(found: dict[str, Any]) -> str:
    return " ".join(verdict(found, GATE)["words"])


def test_figures_that_contradict_nothing_pass_and_are_no_proof() -> None:
    assert verdict(figures(), GATE)["passed"]
    assert "no proof" in words(figures())


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        ("canaries", {"epsilon_lower_bound": 1.2}, "doesn't keep its promise"),
        ("membership", {"loss": {"auc": 0.8, "ci": {"auc": [0.7, 0.9]}}}, "can be told from others"),
        ("copies", {"pixels": COPIES | {"nearer_to_train": 0.8}}, "repeats patients"),
        ("claim", {"epsilon": None}, "no privacy is claimed"),
    ],
)
def test_each_part_can_fail(part: str, change: dict[str, Any], said: str) -> None:
    found = figures()
    found[part] = found[part] | change
    assert not verdict(found, GATE)["passed"]
    assert said in words(found)


def test_canaries_too_few_for_the_claim_say_that_they_can_not_contradict_it() -> None:
    found = figures(claim={"epsilon": 10.0, "delta": 1e-5, "unit": "patient"})
    assert verdict(found, GATE)["passed"]
    assert "can't contradict the claim" in words(found)


def test_nothing_measured_does_not_pass() -> None:
    nothing = {"skipped": "not asked for"}
    assert not verdict(figures(membership=nothing, canaries=nothing, copies=nothing), GATE)["passed"]


def test_what_was_measured_on_patients_stays_at_the_site() -> None:
    told = leaving(figures(), public=False, gate=GATE)
    assert "0.52" not in str(told)
    assert "0.51" not in str(told)
    assert told["canaries"]["epsilon_lower_bound"] == 0.2
    assert leaving(figures(), public=True, gate=GATE)["membership"] == figures()["membership"]


def test_without_a_claim_the_canaries_stay_too() -> None:
    open_run = figures(claim={"epsilon": None, "delta": None, "unit": "patient"})
    assert "kept" in leaving(open_run, public=False, gate=GATE)["canaries"]


def test_a_verdict_that_leaves_does_not_tell_how_the_patients_fared() -> None:
    bad = figures(copies={"features": COPIES, "pixels": COPIES | {"nearer_to_train": 0.8}})
    assert leaving(bad, public=False, gate=GATE)["verdict"] == leaving(figures(), public=False, gate=GATE)["verdict"]
