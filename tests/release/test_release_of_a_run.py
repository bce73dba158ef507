"""A true small run, from simulation over audit to a release that verifies."""

import json
from pathlib import Path

import pytest

from fedmedgen.cli.main import main
from simulations.run import simulate

QUICK = (
    "study=demo", "smoke=true", "privacy=eps1", "data.sites=2", "data.max_patients=12", "data.mask_classes=[]",
    "segmenter.rounds=0", "evaluation.rows=[tstr]", "evaluation.classifier_steps=1", "gate.coverage=0", "gate.auc=0",
    "audit.canaries=16", "audit.holdout=0.4",
)  # fmt: skip


def test_a_run_is_released_once_every_site_has_audited_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("FEDMEDGEN_KEY", raising=False)
    run, out = simulate(list(QUICK), out=str(tmp_path / "run")), tmp_path / "release"
    words = ["release", str(run), "--out", str(out), "--with-generator"]
    assert main(["audit", str(run), "--site", "site-1"]) == 0
    assert main(words) == 1
    assert "site-2: no audit" in capsys.readouterr().out
    assert main(["audit", str(run), "--site", "site-2"]) == 0
    assert main(words) == 0
    assert main(["release", "--verify", str(out)]) == 0
    content = json.loads((out / "certificate.json").read_text())
    assert content["claim"]["epsilon"] <= 1
    assert content["sites"]["site-1"]["epsilon_recomputed"] == pytest.approx(content["claim"]["epsilon"])
    assert content["audits"]["site-2"]["canaries"]["count"] == 16
    images = {path.name for path in (out / "set" / "images").iterdir()}
    assert images == {path.name for path in (run / "synthetic" / "images").iterdir()}
