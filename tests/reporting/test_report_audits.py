"""What the report says of audits and of the gate."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedmedgen.audit.identity import fingerprint
from fedmedgen.reporting.report import write_report

MakeRun = Callable[..., Path]


def audited(run: Path, **changes: Any) -> str:
    known = {
        "site": "site-1",
        "claim": {"epsilon": 1.0},
        "membership": {"loss": {"auc": 0.51}, "SimA": {"auc": 0.53}},
        "canaries": {"epsilon_lower_bound": 0.25, "ceiling": 3.5},
        "copies": {"features": {"nearer_to_train": 0.48}, "pixels": {"nearer_to_train": 0.52}},
        "verdict": {"passed": True, "words": ["canaries: nothing against the claim"]},
        "hashes": fingerprint(run, "site-1"),
    }
    (run / "audits").mkdir(exist_ok=True)
    (run / "audits" / "site-1.json").write_text(json.dumps(known | changes))
    return write_report(run).read_text()


def test_a_run_without_an_audit_says_how_to_make_one(make_run: MakeRun) -> None:
    page = write_report(make_run()).read_text()
    assert "No audit of this run" in page
    assert "Nobody has asked for a release" in page


def test_an_audit_is_a_row_and_a_sentence(make_run: MakeRun) -> None:
    page = audited(make_run())
    for words in ("passed", "0.25", "3.50", "SimA", "0.53", "48%, 52%", "canaries: nothing against the claim"):
        assert words in page


def test_an_audit_of_another_generator_is_said_to_be_one(make_run: MakeRun) -> None:
    run = make_run()
    assert "audit again" in audited(run, hashes={**fingerprint(run, "site-1"), "generator": "0" * 64})


def test_what_stays_at_the_site_is_not_on_the_page(make_run: MakeRun) -> None:
    page = audited(make_run(), membership={"kept": "at the site"}, copies={"kept": "at the site"})
    assert "kept at the site" in page


def test_a_refusal_gives_its_reasons_and_no_markup_of_its_own(make_run: MakeRun) -> None:
    run = make_run()
    (run / "release.json").write_text(json.dumps({"granted": False, "at": "today", "reasons": ["<b>no audit</b>"]}))
    page = write_report(run).read_text()
    assert "Release was refused" in page
    assert "&lt;b&gt;no audit" in page


def test_a_broken_audit_is_left_out(make_run: MakeRun) -> None:
    run = make_run()
    (run / "audits").mkdir()
    (run / "audits" / "site-1.json").write_text("{")
    assert "No audit of this run" in write_report(run).read_text()
