"""The command line of `submit`: whether anything will carry the study out, and what Ctrl-C leaves."""

import json
import socket
import time
from pathlib import Path

import pytest
import yaml

from fedmedgen.cli.main import main
from fedmedgen.composition import compose
from fedmedgen.deployment import health, submitting
from fedmedgen.deployment.project import ServerConfig
from fedmedgen.deployment.studies import read
from server.run_store import RunStore

WORDS = ("study=demo", "privacy=eps1")


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study's file in the kit of a server that doesn't run."""
    monkeypatch.setattr(submitting, "digest_of", lambda _: "0" * 64)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    kit = tmp_path / "kit"
    kit.mkdir()
    (kit / "server.yaml").write_text(f"health_port: {port}\n")
    (kit / "study.yaml").write_text(yaml.safe_dump({"name": "first", "overrides": list(WORDS)}))
    return kit / "study.yaml"


def test_a_study_that_no_server_will_see_is_handed_over_with_a_warning(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", str(study), "--no-wait", "--json"]) == 0
    said = capsys.readouterr()
    assert "nothing will run until `fedmedgen serve` does" in said.err
    assert json.loads(said.out)["status"] == "waiting"


@pytest.mark.parametrize("ok", [True, False])
def test_a_study_that_a_server_will_see_is_handed_over_without_one(
    study: Path, ok: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    port = ServerConfig.read(study.parent / "server.yaml").health_port
    with health.serving(port, lambda: {"ok": ok}):
        assert main(["submit", str(study), "--no-wait"]) == 0
    assert capsys.readouterr().err == ""


def test_a_person_who_stops_waiting_is_told_that_the_study_goes_on(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupted)
    assert main(["submit", str(study)]) == 130
    said = capsys.readouterr().err
    port = ServerConfig.read(study.parent / "server.yaml").health_port
    assert f"first goes on without this command, in {study.parent / 'runs' / 'first'}" in said
    assert f"curl http://127.0.0.1:{port}/health" in said
    assert "--resume" not in said
    assert read(study.parent / "state" / "studies" / "first.json").status == "waiting"


def test_a_study_whose_record_is_damaged_is_taken_up_where_its_server_was_moved_to(study: Path) -> None:
    run = study.parent / "runs" / "first"
    RunStore.create(compose([*WORDS, "backend=deployment", f'out="{run}"']))
    records = study.parent / "state" / "studies"
    records.mkdir(parents=True)
    (records / "first.json").write_text("")
    moved = study.parent.rename(study.parent.with_name("elsewhere"))
    assert main(["submit", str(moved / "study.yaml"), "--no-wait"]) == 0
    assert read(moved / "state" / "studies" / "first.json").out == str(moved / "runs" / "first")
