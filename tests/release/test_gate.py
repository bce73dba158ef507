"""The gate: a whole run passes, and each single thing that is wrong with it is a reason against its release."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from fedmedgen.audit.identity import folder_hash
from fedmedgen.errors import RunError
from fedmedgen.privacy.budget import Plan
from fedmedgen.privacy.mechanism import StagePlan
from fedmedgen.release.evidence import read
from fedmedgen.release.gate import QUESTIONS, judge

Spoil = Callable[[Any], object]


def reasons(small: Any) -> list[str]:
    return judge(read(small.folder)).reasons


def found_canaries(bound: float) -> dict[str, Any]:
    return {
        "count": 200, "kind": "directions", "epsilon_lower_bound": bound, "confidence": 0.999, "ceiling": 4.0,
        "guesses": 100, "correct": 90,
    }  # fmt: skip


def attacked(low: float) -> dict[str, Any]:
    return {"loss": {"auc": 0.9, "tpr_at_1pct_fpr": None, "ci": {"auc": [low, 0.95]}, "members": 9, "holdout": 9}}


def copied(share: float) -> dict[str, Any]:
    near = {"nearer_to_train": share, "holdout_baseline": 0.5, "chance": [0.4, 0.6]}
    return {"n": 50, "synthetic": 8, **near, "features": near, "pixels": near}


def flip_last_byte(small: Any, place: str) -> None:
    data = small.at(place).read_bytes()
    small.at(place).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def cut_ledger(small: Any) -> None:
    path = small.at("sites/site-1/ledger.jsonl")
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
    small.audit_anew()


def edit_ledger(small: Any, old: str, new: str) -> None:
    small.edit("sites/site-1/ledger.jsonl", old, new)
    small.audit_anew()


def change_and_audit(small: Any, place: str, **values: Any) -> None:
    small.change(place, **values)
    small.audit_anew()


def forge_verdict(small: Any, **parts: Any) -> None:
    small.audit_anew(verdict={"passed": True, "words": ["all is well"]}, **parts)


def link_a_patient(small: Any) -> None:
    outside = small.folder.parent / "patient.png"
    outside.write_bytes(b"a radiograph")
    small.at("synthetic/images/0.png").unlink()
    small.at("synthetic/images/0.png").symlink_to(outside)
    small.audit_anew()


def add_and_audit(small: Any, place: str) -> None:
    small.at(place).write_bytes(b"something")
    small.audit_anew()


def remove_and_audit(small: Any, place: str) -> None:
    small.at(place).unlink()
    small.audit_anew()


def not_public(small: Any) -> None:
    small.change("settings.yaml", data__root="/data/of/a/hospital")
    small.change("result.json", public_data=False)
    small.audit_anew()


def seeded_deployment(small: Any) -> None:
    small.change("settings.yaml", backend="deployment")  # its data.root is empty: each site has its own
    small.audit_anew()


def forgotten_site(small: Any) -> None:
    small.at("rounds.csv").write_text("stage,round,site,status\ngenerator,1,site-9,done\n")
    small.audit_anew()


def privacy_none(small: Any) -> None:
    small.change("settings.yaml", privacy__mode="none")
    small.change("result.json", privacy={"mode": "none", "epsilon": None})
    small.audit_anew(verdict={"passed": True, "words": []})


def hide_in_a_folder(small: Any) -> None:
    small.at("synthetic/images/3.png").unlink()
    small.at("synthetic/images/3.png").mkdir()
    small.at("synthetic/images/3.png/patients.csv").write_text("a patient")
    small.audit_anew()


WAYS: dict[str, tuple[Spoil, str]] = {
    "unfinished": (lambda r: r.change("result.json", status="failed", reason="too few sites"), "too few sites"),
    "no site": (lambda r: r.change("result.json", sites={}), "names no site"),
    "privacy none": (privacy_none, "no privacy (privacy=none)"),
    "one noise shared": (
        lambda r: change_and_audit(r, "settings.yaml", federation__aggregation="secure", segmenter__rounds=0,
                                   privacy__generator_steps=1), "its sites share one noise",
    ),
    "ledger missing": (lambda r: remove_and_audit(r, "sites/site-1/ledger.jsonl"), "site-1: no ledger.jsonl"),
    "head missing": (lambda r: remove_and_audit(r, "sites/site-1/ledger.head"), "site-1: no ledger.head"),
    "ledger cut": (cut_ledger, "lines were cut off"),
    "ledger edited": (lambda r: edit_ledger(r, '"steps":4,"denom', '"steps":3,"denom'), "line 1 of the ledger"),
    "over its limit": (lambda r: r.change("sites/site-1/policy.yaml", lifetime_epsilon=1.0), "above the 1 "),
    "over delta": (lambda r: r.change("sites/site-1/policy.yaml", lifetime_delta=1e-6), "delta 1e-05 is spent"),
    "noise below the policy": (
        lambda r: r.change("sites/site-1/policy.yaml", smallest_noise_multiplier=3.5), "smallest is 3.5",
    ),
    "spent by another run": (
        lambda r: (r.spend_again(name="other"), r.change("sites/site-1/policy.yaml", lifetime_epsilon=2.0)),
        "above the 2 ",
    ),
    "another run's ledger": (lambda r: r.ledger_anew(name="other"), "no plan for the run 'small-0-abc'"),
    "less noise than claimed": (lambda r: r.ledger_anew(noise=2.0), "result.json claims epsilon 1.491; the steps in"),
    "more steps than claimed": (lambda r: r.ledger_anew(steps=40), "result.json claims epsilon 1.491; the steps in"),
    "counted too little": (lambda r: r.ledger_anew(noise=1.0, counted=1.49), "counts epsilon 1.49 for a plan"),
    "a second plan in the run": (lambda r: r.spend_again(name="small-0-abc", steps=8), "the steps in the ledger cost"),
    "another delta": (lambda r: r.ledger_anew(delta=1e-4), "delta is 0.0001 in the ledger"),
    "claim too small": (
        lambda r: change_and_audit(r, "result.json", privacy__epsilon=0.5), "claims epsilon 0.5 for the run",
    ),
    "a site's claim too small": (
        lambda r: change_and_audit(r, "result.json", sites__site_1__epsilon_run=0.5),
        "site-1: result.json claims epsilon 0.5; the steps in the ledger cost 1.491",
    ),
    "above the study's target": (
        lambda r: change_and_audit(r, "settings.yaml", privacy__epsilon=1.0), "its settings promise 1",
    ),
    "another noise in print": (
        lambda r: r.change("result.json", privacy__noise_multiplier=9.0), "result.json says noise 9.0 for generator",
    ),
    "card of another claim": (
        lambda r: (r.edit("generator/README.md", "epsilon: 1.4", "epsilon: 0.4"), r.audit_anew()),
        "the generator's card prints epsilon 0.49",
    ),
    "card without a claim": (
        lambda r: (r.edit("generator/README.md", "- epsilon", "- hope"), r.audit_anew()), "card prints no epsilon",
    ),
    "datasheet of another run": (
        lambda r: change_and_audit(r, "synthetic/datasheet.json", run="other"), "datasheet.json is of the run 'other'",
    ),
    "no audit": (lambda r: r.at("audits/site-2.json").unlink(), "site-2: no audit"),
    "audit of another site": (
        lambda r: r.at("audits/site-2.json").write_bytes(r.at("audits/site-1.json").read_bytes()),
        "site-2: its audit is of 'site-1'",
    ),
    "audit failed": (
        lambda r: r.audit_anew(verdict={"passed": False, "words": ["the set repeats patients"]}),
        "its audit failed: the set repeats patients",
    ),
    "audit of another claim": (
        lambda r: r.audit_anew(claim={"epsilon": 9.0, "delta": 1e-5, "unit": "patient"}), "a claim of epsilon 9",
    ),
    "audit of nothing": (
        lambda r: forge_verdict(r, canaries={"skipped": "no"}, membership={"skipped": "no"}, copies={"skipped": "no"}),
        "its audit measured nothing",
    ),
    "audit by few canaries": (
        lambda r: forge_verdict(
            r, canaries=found_canaries(0.1) | {"count": 8}, membership={"kept": "there"}, copies={"kept": "there"}
        ),
        "by too few canaries",
    ),
    "canaries that are no number": (
        lambda r: forge_verdict(r, canaries=found_canaries(float("nan"))), "figures that are no numbers",
    ),
    "a simulated site's policy taken away": (
        lambda r: r.at("sites/site-1/policy.yaml").unlink(), "its folder has no policy.yaml",
    ),
    "a folder named as an image": (hide_in_a_folder, "not part of a synthetic set"),
    "stranger beside the generator": (lambda r: add_and_audit(r, "generator/patients.csv"), "generator/patients.csv"),
    "canaries above the claim": (lambda r: forge_verdict(r, canaries=found_canaries(2.0)), "above the 1.49"),
    "members recognised": (lambda r: forge_verdict(r, membership=attacked(0.8)), "can be told from others"),
    "copies": (lambda r: forge_verdict(r, copies=copied(0.9)), "the set repeats patients"),
    "another generator": (lambda r: flip_last_byte(r, "generator/weights.safetensors"), "the generator is not the one"),
    "other settings": (lambda r: r.change("settings.yaml", gate__auc=0.1), "the settings.yaml is not the one"),
    "another ledger": (lambda r: r.spend_again_unaudited(), "the ledger of the site is not the one"),
    "set changed": (lambda r: flip_last_byte(r, "synthetic/images/3.png"), "the synthetic set is not the one"),
    "image missing": (lambda r: remove_and_audit(r, "synthetic/images/3.png"), "named in labels.csv but not there: 3"),
    "image too many": (lambda r: add_and_audit(r, "synthetic/images/patient.png"), "images not in labels.csv: patient"),
    "mask too many": (lambda r: add_and_audit(r, "synthetic/masks/patient.png"), "masks not in labels.csv: patient"),
    "stranger": (lambda r: add_and_audit(r, "synthetic/patients.csv"), "patients.csv (1 in all): not part"),
    "a link out of the set": (link_a_patient, "links and devices can't be released"),
    "no set": (lambda r: remove_and_audit(r, "synthetic/labels.csv"), "no synthetic set"),
    "low coverage": (lambda r: r.change("result.json", metrics__fidelity__coverage=0.001), "coverage is 0.001, below"),
    "coverage not a number": (
        lambda r: r.change("result.json", metrics__fidelity__coverage=float("nan")), "coverage is nan, below",
    ),
    "low AUC": (
        lambda r: r.change("result.json", metrics__classification__tstr__auc__mean=0.55), "AUC (TSTR) is 0.550, below",
    ),
    "low Dice": (
        lambda r: r.change("result.json", metrics__segmentation__tstr__dice_mean__mean=0.2), "Dice (TSTR) is 0.200",
    ),
    "evaluation skipped": (
        lambda r: r.change("result.json", metrics={"fidelity": {"skipped": "no held-out cases"}}), "no held-out cases",
    ),
    "worth of another set": (
        lambda r: r.change("result.json", metrics__set="0" * 64), "coverage was not measured (evaluation was",
    ),
    "never evaluated": (lambda r: r.change("result.json", metrics={}), "coverage was not measured (evaluation was sk"),
    "a seeded site in a deployment": (seeded_deployment, "seeded noise on data that isn't public"),
    "a site that the result forgot": (forgotten_site, "rounds.csv names sites that result.json lacks: site-9"),
    "seeded on private data": (not_public, "seeded noise on data that isn't public"),
    "units mixed": (lambda r: r.change("result.json", sites__site_1__unit="image"), "protect different units"),
    "unit of the policy": (lambda r: r.change("sites/site-1/policy.yaml", unit="image"), "site-1's policy names"),
    "garbled": (lambda r: r.change("result.json", sites__site_1__epsilon_run="much"), "this can't be checked"),
}  # fmt: skip


def test_a_whole_run_has_no_reason_against_it(small: Any) -> None:
    judged = judge(read(small.folder))
    assert judged.reasons == []
    assert judged.granted
    assert [check.question for check in judged.checks] == list(QUESTIONS)


@pytest.mark.parametrize(("spoil", "said"), WAYS.values(), ids=WAYS.keys())
def test_the_gate_says_no(small: Any, spoil: Spoil, said: str) -> None:
    spoil(small)
    found = reasons(small)
    assert [reason for reason in found if said in reason], found


def test_the_noise_of_a_segmenter_after_a_release_is_held_against_the_ledger(small: Any) -> None:
    """Statistics and a segmenter, no rounds of the generator: one noise for each stage."""
    kept: dict[str, Any] = {"clip_norm": 1.0, "denominator_patients": 50}
    stages = (
        StagePlan(name="statistics", sample_rate=1.0, noise_multiplier=5.0, steps=1, **kept),
        StagePlan(name="segmenter", sample_rate=0.5, noise_multiplier=4.0, steps=4, **kept),
    )
    small.ledgers_of(Plan(stages, 1e-5))
    noise = {"privacy__noise_multiplier": 4.0, "privacy__statistics_noise_multiplier": 5.0}
    change_and_audit(small, "result.json", metrics__set=folder_hash(small.at("synthetic")), **noise)
    assert reasons(small) == []
    for name, said in (("noise_multiplier", "segmenter"), ("statistics_noise_multiplier", "statistics")):
        change_and_audit(small, "result.json", **{**noise, f"privacy__{name}": 99.0})
        assert f"site-1: result.json says noise 99.0 for {said}" in reasons(small)[0]


def test_all_reasons_are_given_not_the_first_alone(small: Any) -> None:
    small.change("result.json", status="failed", public_data=False, metrics__fidelity__coverage=0.0)
    small.at("audits/site-1.json").unlink()
    found = " | ".join(reasons(small))
    for said in ("not completed", "isn't public", "coverage is 0.000", "site-1: no audit"):
        assert said in found


def test_what_stays_at_a_site_is_no_reason_but_its_canaries_are(small: Any) -> None:
    kept = {"kept": "at the site: it was measured on patients"}
    small.audit_anew(membership=kept, copies=kept, verdict={"passed": True, "words": []})
    assert reasons(small) == []
    small.audit_anew(membership=kept, copies=kept, canaries={"skipped": "none"}, verdict={"passed": True, "words": []})
    assert "measured nothing" in reasons(small)[0]


def test_the_worth_may_be_measured_after_the_run(small: Any) -> None:
    metrics = json.loads(small.at("result.json").read_text())["metrics"]
    small.change("result.json", metrics={name: {"skipped": "no held-out cases"} for name in metrics if name != "set"})
    assert len(reasons(small)) == 3
    small.at("metrics.json").write_text(json.dumps(metrics))
    assert reasons(small) == []


def test_no_classes_and_no_masks_ask_for_no_classifier_and_no_segmenter(small: Any) -> None:
    small.change("synthetic/datasheet.json", classes=["normal"])
    for mask in small.at("synthetic/masks").iterdir():
        mask.unlink()
    small.at("synthetic/masks").rmdir()
    metrics = {"fidelity": {"coverage": 0.3}, "set": folder_hash(small.at("synthetic"))}
    small.change("result.json", metrics=metrics)
    small.audit_anew()
    assert reasons(small) == []


@pytest.mark.parametrize("place", ["result.json", "settings.yaml"])
def test_without_result_or_settings_there_is_nothing_to_judge(small: Any, place: str) -> None:
    small.at(place).unlink()
    with pytest.raises(RunError, match="is this a finished run"):
        read(small.folder)


def test_a_site_is_no_path(small: Any) -> None:
    small.change("result.json", sites={"../../etc": {}})
    with pytest.raises(RunError, match="names sites that can't be"):
        read(small.folder)
