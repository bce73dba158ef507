"""`fedmedgen audit` on small runs: what it writes, what stays, what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest

from fedmedgen.audit import membership, site_audit
from fedmedgen.cli.main import main
from fedmedgen.privacy.canary_record import CanaryRecord
from fedmedgen.privacy.randomness import Stream
from fedmedgen.settings import Settings
from simulations.run import simulate

QUICK = ("study=demo", "smoke=true", "evaluation.enabled=false", "data.max_patients=24", "segmenter.rounds=0")


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("audited") / "run"
    return simulate([*QUICK, "audit.canaries=24", "audit.holdout=0.4", "privacy=eps1"], out=str(out))


def test_an_audit_says_what_it_found_and_writes_both_files(audited: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", str(audited), "--site", "site-1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["canaries"]["count"] == 24
    assert found["canaries"]["epsilon_lower_bound"] <= found["claim"]["epsilon"] <= 1
    assert 0 <= found["membership"]["SimA"]["auc"] <= 1
    assert 0 <= found["copies"]["nearer_to_train"] <= 1
    assert all(found["hashes"].values())
    assert json.loads((audited / "sites" / "site-1" / "audit.json").read_text()) == found
    assert (audited / "sites" / "site-1" / "nearest.png").is_file()
    assert not list((audited / "audits").glob("*.png"))


def test_another_generator_has_another_fingerprint(audited: Path) -> None:
    from fedmedgen.audit.identity import fingerprint

    before = fingerprint(audited, "site-1")
    weights = next((audited / "generator").rglob("*.safetensors"))
    kept = weights.read_bytes()
    try:
        weights.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
        after = fingerprint(audited, "site-1")
    finally:
        weights.write_bytes(kept)
    assert {name for name in before if before[name] != after[name]} == {"generator"}


def test_crafted_images_are_found_in_statistics_that_hide_nothing(tmp_path: Path) -> None:
    words = ("generator=moments", "statistics.share=1", "audit.kind=images", "audit.canaries=24", "audit.holdout=0.4")
    open_wide = ("privacy=none", "data.mask_classes=[]")
    run = simulate([*QUICK, *words, *open_wide], out=str(tmp_path / "run"))
    main(["audit", str(run), "--site", "site-1", "--out", str(tmp_path / "told.json")])
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["canaries"]["kind"] == "images"
    assert told["canaries"]["epsilon_lower_bound"] > 0
    assert "likelihood" in told["membership"]


@pytest.mark.parametrize(("kind", "count", "said"), [("directions", 5, "8 at least"), ("images", 24, "directions")])
def test_canaries_that_can_not_be_scored_are_said_to_be_and_stop_no_audit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, count: int, said: str
) -> None:
    record = CanaryRecord.of(tmp_path, "run")
    record.plant(run="run", kind=kind, count=count, stream=Stream.seeded(1))
    monkeypatch.setattr(membership, "attacks", lambda *_, **__: {"likelihood": np.full(count, np.nan)})
    assert said in site_audit._canaries(record, None, Settings(), 1e-5)["skipped"]


def test_without_privacy_the_canaries_tell_everything_and_the_audit_fails(tmp_path: Path) -> None:
    run = simulate([*QUICK, "privacy=none", "audit.canaries=64", "generator.local_steps=60"], out=str(tmp_path / "run"))
    assert main(["audit", str(run), "--site", "site-1"]) == 1
    found = json.loads((run / "sites" / "site-1" / "audit.json").read_text())
    assert found["canaries"]["correct"] == found["canaries"]["guesses"]
    assert found["canaries"]["epsilon_lower_bound"] > 2
    assert "audit.holdout" in found["membership"]["skipped"]


@pytest.mark.parametrize(
    ("site", "said"), [("site-9", "has no site 'site-9'"), ("../site-1", "has no site"), ("", "has no site")]
)
def test_a_site_that_is_not_there_is_refused(
    audited: Path, site: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["audit", str(audited), "--site", site]) == 1
    assert said in capsys.readouterr().err


def test_a_folder_without_a_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", str(tmp_path), "--site", "site-1"]) == 1
    assert "expected a finished run" in capsys.readouterr().err
