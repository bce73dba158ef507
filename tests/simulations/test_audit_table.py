"""The table of audited studies: a row a site, made once."""

from pathlib import Path

import pytest

from simulations import audit_table

SMOKE = ("study=demo", "smoke=true", "evaluation.enabled=false", "data.max_patients=20", "segmenter.rounds=0")


def test_each_site_is_a_row_and_nothing_is_made_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = (*SMOKE, "audit.canaries=16", "audit.holdout=0.4")
    monkeypatch.setattr(audit_table, "STUDIES", {"tiny": words})
    assert audit_table.main(["--out", str(tmp_path), "--runs", str(tmp_path / "runs")]) == 0
    page = (tmp_path / "audits.md").read_text()
    assert page.count("| tiny | site-") == 3
    assert "not measured" in page
    first = (tmp_path / "runs" / "tiny" / "sites" / "site-1" / "audit.json").read_bytes()
    assert audit_table.main(["--out", str(tmp_path), "--runs", str(tmp_path / "runs")]) == 0
    assert (tmp_path / "runs" / "tiny" / "sites" / "site-1" / "audit.json").read_bytes() == first
