"""What join, serve and submit refuse before they start anything, and what health says."""

import datetime
import json
import os
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from flwr.supercore.retry import http_retry
from PIL import Image

from fedmedgen.cli.main import main
from fedmedgen.composition import compose
from fedmedgen.deployment import certificates, health, site_node, submitting
from fedmedgen.deployment.project import SiteConfig
from fedmedgen.deployment.site_node import GAVE_UP, SiteNode
from fedmedgen.deployment.studies import read, write
from fedmedgen.errors import RunError
from server.run_store import RunStore


def get(port: int, path: str = "/health") -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_health_is_a_status_and_its_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    state: dict[str, object] = {"ok": True, "sites": {"north": "online"}}

    def said() -> dict[str, object]:
        if "ok" not in state:
            raise ValueError("no certificate")
        return state

    with health.serving(port, said):
        status, body = get(port)
        assert (status, json.loads(body)) == (200, state)
        state["ok"] = False
        assert get(port)[0] == 503
        assert get(port, "/other")[0] == 404
        del state["ok"]
        status, body = get(port)
        assert (status, json.loads(body)) == (503, {"ok": False, "error": "ValueError: no certificate"})
        with pytest.raises(RunError, match="set another health_port"), health.serving(port, lambda: state):
            pass


def kit(folder: Path, **changes: object) -> Path:
    """A site's kit whose policy is filled in, but for what is changed."""
    certificates.write_key(folder / "site.key", certificates.new_key(), ssh=True)
    (folder / "ca.crt").write_text("")
    (folder / "data" / "images").mkdir(parents=True)
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(folder / "data" / "images" / "p0.png")
    (folder / "data" / "labels.csv").write_text("filename,patient\np0.png,p0\n")
    policy = {
        "site": "north", "folder": "ledger", "patients_declared": 10, "labelled_declared": 0, "lifetime_epsilon": 5.0,
        "lifetime_delta": 1e-3, "data_root": "data", "bundles": ["0" * 64], **changes,
    }  # fmt: skip
    (folder / "policy.yaml").write_text(yaml.safe_dump(policy))
    words = {"site": "north", "server": "127.0.0.1:1", "health_port": free_port(), "restart_seconds": 60.0}
    (folder / "site.yaml").write_text(yaml.safe_dump(words))
    return folder / "site.yaml"


@pytest.fixture
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site_node.Kept, "start", lambda _: pytest.fail("Flower's program was started"))


@pytest.mark.usefixtures("nothing_starts")
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"site": "south"}, "make them one"),
        ({"bundles": []}, "lists no bundle"),
        ({"simulation": True}, "remove that line"),
        ({"ledger_head": "unmounted/ledger.head"}, "mount its disk"),
    ],
)
def test_a_site_whose_policy_does_not_fit_does_not_join(
    tmp_path: Path, changes: dict[str, object], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["join", str(kit(tmp_path, **changes))]) == 1
    assert words in capsys.readouterr().err


@pytest.mark.usefixtures("nothing_starts")
@pytest.mark.parametrize("damage", ["unmounted", "empty", "damaged", "nameless", "other layout"])
def test_a_site_that_can_read_no_patient_does_not_join(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = kit(tmp_path, data_layout="npz" if damage == "other layout" else "images")
    data = tmp_path / "data"
    if damage == "unmounted":
        data.rename(tmp_path / "elsewhere")
    elif damage == "empty":
        data.rename(tmp_path / "elsewhere")
        data.mkdir()
    elif damage == "damaged":
        (data / "images" / "p0.png").write_bytes(b"")
    elif damage == "nameless":
        (data / "labels.csv").write_text("filename\np0.png\n")
    assert main(["join", str(file)]) == 1
    said = capsys.readouterr().err
    assert "error: data: " in said
    assert "fedmedgen preflight" in said
    if damage in ("unmounted", "empty", "other layout"):
        assert str(data) in said


def test_a_site_that_counts_images_needs_no_names(tmp_path: Path) -> None:
    file = kit(tmp_path, unit="image")
    (tmp_path / "data" / "labels.csv").unlink()
    assert SiteNode(SiteConfig.read(file)).policy.unit == "image"


@pytest.mark.usefixtures("nothing_starts")
def test_a_site_whose_ledgers_head_cannot_be_written_does_not_join(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other disk").mkdir()
    file = kit(tmp_path, ledger_head="other disk/ledger.head")
    SiteNode(SiteConfig.read(file))
    monkeypatch.setattr(os, "access", lambda place, *_: Path(place).name != "other disk")
    assert main(["join", str(file)]) == 1
    assert "ReadWritePaths" in capsys.readouterr().err


def test_a_kit_without_its_key_does_not_join(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = kit(tmp_path)
    (tmp_path / "site.key").unlink()
    assert main(["join", str(file)]) == 1
    assert "part of the site's kit" in capsys.readouterr().err


def test_a_site_says_how_it_is_and_ends_when_told(tmp_path: Path) -> None:
    node = SiteNode(SiteConfig.read(kit(tmp_path)))
    assert node.said() == {"ok": False, "site": "north", "supernode": "starting", "restarts": 0, "last_event": None}
    (tmp_path / "ledger").mkdir()
    (tmp_path / "ledger" / "security.jsonl").write_text('{"event": "asked"}\n{"event": "sent"}\n')
    thread = threading.Thread(target=node.run)
    thread.start()
    try:
        for _ in range(100):
            if node.node is not None and node.said()["supernode"] != "starting":
                break
            threading.Event().wait(0.1)
        status, body = get(node.config.health_port)
        assert json.loads(body)["last_event"] == {"event": "sent"}
        with (tmp_path / "ledger" / "security.jsonl").open("a") as file:
            file.write('{"event": "se')  # a full disk
        assert json.loads(get(node.config.health_port)[1])["last_event"] == '{"event": "se'
        assert status in (200, 503)
    finally:
        node.stop.set()
        thread.join(60)
    assert not thread.is_alive()
    assert node.node is not None
    assert not node.node.running


def test_the_words_of_a_supernode_that_gives_up_are_flowers_own() -> None:
    assert GAVE_UP in Path(http_retry.__file__).read_text()


def server(folder: Path) -> Path:
    (folder / "sites").mkdir()
    (folder / "app").mkdir()
    key = certificates.new_key()
    authority = certificates.authority(key, "chest")
    certificates.write_certificate(folder / "ca.crt", authority)
    certificates.write_certificate(folder / "server.crt", certificates.for_server(key, ["a"], 10, (key, authority)))
    certificates.write_key(folder / "server.key", key)
    (folder / "server.yaml").write_text("port: 1\n")
    return folder / "server.yaml"


@pytest.mark.parametrize("name", ["ca.crt", "server.crt", "server.key"])
def test_a_server_without_a_part_of_its_kit_does_not_start(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = server(tmp_path)
    (tmp_path / name).unlink()
    assert main(["serve", str(file)]) == 1
    assert "provision writes it" in capsys.readouterr().err


def test_a_server_whose_certificate_is_damaged_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = server(tmp_path)
    (tmp_path / "server.crt").write_text("-----BEGIN CERTIFICATE-----\n!\n")
    assert main(["serve", str(file)]) == 1
    said = capsys.readouterr().err
    assert f"expected a certificate at {tmp_path / 'server.crt'}" in said


def test_a_server_whose_certificate_has_ended_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = server(tmp_path)
    next_month = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=31)
    monkeypatch.setattr(certificates, "_now", lambda: next_month)
    assert main(["serve", str(file)]) == 1
    assert "has ended" in capsys.readouterr().err


def study(folder: Path, *words: str) -> Path:
    (folder / "study.yaml").write_text(yaml.safe_dump({"name": "first", "overrides": list(words)}))
    return folder / "study.yaml"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submitting, "digest_of", lambda _: "0" * 64)


def test_a_study_is_handed_over_once(tmp_path: Path, quick: None, capsys: pytest.CaptureFixture[str]) -> None:
    server(tmp_path)
    file = study(tmp_path, "study=demo", "privacy=eps1")
    assert main(["submit", str(file), "--no-wait", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["status"], said["out"]) == ("waiting", str(tmp_path / "runs" / "first"))
    record = read(tmp_path / "state" / "studies" / "first.json")
    assert (record.overrides, record.status) == (("study=demo", "privacy=eps1"), "waiting")
    assert main(["submit", str(file), "--no-wait"]) == 1
    assert "waiting already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("study=demo", "privacy=none"), 2, "for simulations on public data"),
        (("study=demo", "rounds=none"), 2, "rounds"),
        (("study=demo", "round=3"), 2, "round"),
    ],
)
def test_a_study_that_no_site_could_carry_out_is_refused_at_once(
    tmp_path: Path, quick: None, words: tuple[str, ...], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    server(tmp_path)
    assert main(["submit", str(study(tmp_path, *words)), "--no-wait"]) == code
    assert said in capsys.readouterr().err
    assert not (tmp_path / "state" / "studies").exists()


def test_a_name_whose_results_lie_there_is_refused(
    tmp_path: Path, quick: None, capsys: pytest.CaptureFixture[str]
) -> None:
    server(tmp_path)
    (tmp_path / "runs" / "first").mkdir(parents=True)
    (tmp_path / "runs" / "first" / "result.json").write_text("{}")
    assert main(["submit", str(study(tmp_path, "study=demo", "privacy=eps1")), "--no-wait"]) == 1
    assert "give yours a new name" in capsys.readouterr().err


def test_a_study_that_failed_is_taken_up_again_with_the_words_it_had(
    tmp_path: Path, quick: None, capsys: pytest.CaptureFixture[str]
) -> None:
    server(tmp_path)
    file = study(tmp_path, "study=demo", "privacy=eps1")
    assert main(["submit", str(file), "--no-wait"]) == 0
    records, run = tmp_path / "state" / "studies", tmp_path / "runs" / "first"
    waiting = read(records / "first.json")
    failed = replace(waiting, status="failed", attempts=5, reason="too few sites", not_before=1e12, reached="x", run=7)
    write(records, failed)
    settings = compose(["study=demo", "privacy=eps1", "backend=deployment", f'out="{run}"'])
    RunStore.create(settings).write_result({"status": "failed"})
    assert main(["submit", str(study(tmp_path, "study=demo", "privacy=eps10")), "--no-wait"]) == 1
    assert "the very words it had" in capsys.readouterr().err
    assert main(["submit", str(study(tmp_path, "study=demo", "privacy=eps1")), "--no-wait"]) == 0
    again = read(records / "first.json")
    assert (again.status, again.attempts, again.not_before, again.reason) == ("waiting", 0, 0.0, "")
    assert (again.overrides, again.out) == (failed.overrides, str(run))
    write(records, replace(failed, status="completed"))
    assert main(["submit", str(file), "--no-wait"]) == 1


def test_a_study_whose_record_is_damaged_is_taken_up_again_by_its_settings(
    tmp_path: Path, quick: None, capsys: pytest.CaptureFixture[str]
) -> None:
    server(tmp_path)
    run = tmp_path / "runs" / "first"
    RunStore.create(compose(["study=demo", "privacy=eps1", "backend=deployment", f'out="{run}"']))
    (tmp_path / "state" / "studies").mkdir(parents=True)
    (tmp_path / "state" / "studies" / "first.json").write_text("")
    assert main(["submit", str(study(tmp_path, "study=demo", "privacy=eps10")), "--no-wait"]) == 1
    assert "give yours a new name" in capsys.readouterr().err
    assert main(["submit", str(study(tmp_path, "study=demo", "privacy=eps1")), "--no-wait"]) == 0
    assert read(tmp_path / "state" / "studies" / "first.json").status == "waiting"


@pytest.mark.parametrize("module", ["fedmedgen.deployment.site_node", "fedmedgen.deployment.supernode"])
def test_what_waits_at_a_site_day_and_night_holds_no_torch(module: str) -> None:
    program = f"import sys, {module}; print(sorted({{'torch', 'diffusers', 'opacus'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
