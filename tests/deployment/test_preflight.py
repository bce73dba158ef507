"""Preflight: each thing that a site needs is looked at, and what is missing is said in words."""

import datetime
import json
import os
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_TOLERANCE
from PIL import Image

from fedmedgen.cli.main import main
from fedmedgen.deployment import certificates, preflight, reaching
from fedmedgen.deployment.project import SiteConfig
from fedmedgen.federation.policy import SitePolicy
from fedmedgen.privacy.chain import digest_of
from fedmedgen.privacy.ledger import Ledger, Limit, load_key
from fedmedgen.privacy.new_ledger import create_ledger


def site(place: Path, *, patients: int = 3, port: int = 1, **changes: object) -> Path:
    """A site that lacks nothing, but for what is changed of its policy."""
    images = place / "data" / "images"
    images.mkdir(parents=True, exist_ok=True)
    names = [f"p{number}.png" for number in range(patients)]
    for number, name in enumerate(names):
        Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) + number).save(images / name)
    rows = "\n".join(f"{name},{name}" for name in names)
    (place / "data" / "labels.csv").write_text(f"filename,patient\n{rows}\n")
    policy = {
        "site": "north", "folder": "ledger", "patients_declared": 10, "labelled_declared": 0, "lifetime_epsilon": 5.0,
        "lifetime_delta": 1e-3, "data_root": "data", "data_layout": "images", "bundles": ["0" * 64], **changes,
    }  # fmt: skip
    (place / "policy.yaml").write_text(yaml.safe_dump(policy))
    if not (place / "site.key").exists():
        certificates.write_key(place / "site.key", certificates.new_key(), ssh=True)
        known = SitePolicy.read(place / "policy.yaml")
        create_ledger(known.ledger_path, key_path=known.key_path, head_path=known.head_path)
    (place / "site.yaml").write_text(yaml.safe_dump({"site": "north", "server": f"127.0.0.1:{port}"}))
    return place / "site.yaml"


def looked(place: Path, **changes: object) -> dict[str, tuple[str, str]]:
    found = preflight.preflight(SiteConfig.read(site(place, **changes)))  # type: ignore[arg-type]
    return {one.what: (one.status, one.words) for one in found}


@contextmanager
def server(
    folder: Path, *, days: int = 365, names: tuple[str, ...] = ("127.0.0.1",), late: float = 0.0
) -> Iterator[int]:
    """An HTTPS server under the site's authority; its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def date_time_string(self, timestamp: float | None = None) -> str:
            when = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=late)
            return when.strftime("%a, %d %b %Y %H:%M:%S GMT")

        def log_message(self, *_: object) -> None:
            pass

    authority_key, key = certificates.new_key(), certificates.new_key()
    authority = certificates.authority(authority_key, "chest")
    certificates.write_certificate(folder / "ca.crt", authority)
    issued = certificates.for_server(key, ["localhost"], days, (authority_key, authority))
    certificates.write_certificate(folder / "server.crt", issued)
    certificates.write_key(folder / "server.key", key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.crt", folder / "server.key")
    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.socket = context.wrap_socket(running.socket, server_side=True)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    try:
        yield running.server_address[1]
    finally:
        running.shutdown()
        running.server_close()


def test_a_site_that_lacks_nothing_is_ready(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with server(tmp_path) as port:
        file = site(tmp_path, port=port)
        assert main(["preflight", str(file), "--json"]) == 0
        said = json.loads(capsys.readouterr().out)
        assert said["ready"]
        words = {one["what"]: one["words"] for one in said["checks"]}
        assert set(words) == {
            "policy", "key", "data", "budget", "disk", "memory", "GPU", "server", "certificate", "clock",
        }  # fmt: skip
        assert words["data"] == "3 patients in 3 images; 10 declared"
        assert words["budget"] == "epsilon 5 left of 5, delta 0.001 of 0.001"
        assert "ends in 36" in words["certificate"]
        assert main(["preflight", str(file)]) == 0
        assert "ready to join" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "what", "words"),
    [
        ({"bundles": []}, "policy", "lists no bundle"),
        ({"site": "south"}, "policy", "make them one"),
        ({"simulation": True}, "policy", "Remove `simulation`"),
        ({"patients_declared": None}, "policy", "must be a whole number"),
        ({"patients_declared": 2}, "data", "raise the figure"),
        ({"data_root": "elsewhere"}, "data", "correct data_root"),
        ({"folder": "elsewhere"}, "budget", "ledger create"),
    ],
)
def test_what_is_missing_is_said(tmp_path: Path, changes: dict[str, object], what: str, words: str) -> None:
    site(tmp_path)
    status, said = looked(tmp_path, **changes)[what]
    assert (status, words in said) == ("not ready", True)


def test_data_without_patients_is_not_ready(tmp_path: Path) -> None:
    site(tmp_path)
    (tmp_path / "data" / "labels.csv").write_text("filename\np0.png\n")
    config = SiteConfig.read(tmp_path / "site.yaml")
    (found,) = [one for one in preflight.preflight(config) if one.what == "data"]
    assert (found.status, "no image names its patient" in found.words) == ("not ready", True)


def test_a_head_that_lies_apart_is_ready_only_where_it_can_be_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site(tmp_path)
    assert "head" not in looked(tmp_path)
    assert "head" not in looked(tmp_path, ledger_head="./ledger/ledger.head")
    status, words = looked(tmp_path, ledger_head="other disk/ledger.head")["head"]
    assert (status, "isn't there" in words) == ("not ready", True)
    (tmp_path / "other disk").mkdir()
    assert looked(tmp_path, ledger_head="other disk/ledger.head")["head"][0] == "ok"
    monkeypatch.setattr(os, "access", lambda place, *_: Path(place).name != "other disk")
    found = looked(tmp_path, ledger_head="other disk/ledger.head")
    assert (found["head"][0], "ReadWritePaths" in found["head"][1]) == ("not ready", True)
    assert found["disk"][0] == "ok"


def test_an_empty_folder_is_not_ready(tmp_path: Path) -> None:
    site(tmp_path)
    (tmp_path / "empty").mkdir()
    status, said = looked(tmp_path, data_root="empty")["data"]
    assert (status, "no radiograph of layout 'images'" in said) == ("not ready", True)


def test_a_key_that_others_can_read_is_not_ready(tmp_path: Path) -> None:
    file = site(tmp_path)
    (tmp_path / "site.key").chmod(0o644)
    found = {one.what: one for one in preflight.preflight(SiteConfig.read(file))}
    assert "chmod 600" in found["key"].words
    (tmp_path / "site.key").unlink()
    found = {one.what: one for one in preflight.preflight(SiteConfig.read(file))}
    assert "part of the kit" in found["key"].words


def test_a_full_disk_and_a_wanted_gpu_are_not_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "DISK_GB", 1e9)
    monkeypatch.setattr(preflight, "MEMORY_GB", 1e9)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = looked(tmp_path, device="cuda")
    assert [found[what][0] for what in ("disk", "memory", "GPU")] == ["not ready", "warning", "not ready"]


def test_a_server_that_is_not_there_or_not_trusted_is_not_ready(tmp_path: Path) -> None:
    config = SiteConfig.read(site(tmp_path))
    (found,) = reaching.reach(config)
    assert "authority's certificate" in found.words
    with server(tmp_path) as port:
        (tmp_path / "other").mkdir()
        with server(tmp_path / "other"):
            pass
        config = SiteConfig.read(site(tmp_path, port=port))
        (tmp_path / "ca.crt").write_bytes((tmp_path / "other" / "ca.crt").read_bytes())
        (found,) = reaching.reach(config)
        assert (found.status, "no certificate that this site trusts" in found.words) == ("not ready", True)
    (found,) = reaching.reach(config)
    assert (found.status, "can't be reached" in found.words) == ("not ready", True)


@pytest.mark.parametrize("name", ["fed..org", "a" * 70 + ".org"])
def test_a_server_whose_name_can_be_none_is_not_ready(tmp_path: Path, name: str) -> None:
    with server(tmp_path):
        pass
    config = replace(SiteConfig.read(site(tmp_path)), server=f"{name}:8443")
    (found,) = reaching.reach(config)
    assert (found.status, f"{name}:8443 can't be reached" in found.words) == ("not ready", True)


@pytest.mark.parametrize("date", [None, "", "yesterday"])
def test_a_server_that_names_no_time_is_a_warning(date: str | None) -> None:
    assert reaching._clock(date, 0.0).status == "warning"


def test_a_certificate_near_its_end_and_a_clock_that_is_off_are_said(tmp_path: Path) -> None:
    with server(tmp_path, days=5, late=600) as port:
        found = {one.what: one for one in reaching.reach(SiteConfig.read(site(tmp_path, port=port)))}
    assert found["certificate"].status == "warning"
    assert (found["clock"].status, " s ahead of" in found["clock"].words) == ("not ready", True)


@pytest.mark.parametrize(
    ("late", "status", "words"),
    [
        (30, "not ready", " s ahead of"), (8, "not ready", " s ahead of"), (0, "ok", "within 2 s"),
        (-60, "ok", "within 6"), (-400, "not ready", " s behind"),
    ],
)  # fmt: skip
def test_a_clock_is_ready_only_where_flower_would_take_its_signatures(
    tmp_path: Path, late: float, status: str, words: str
) -> None:
    with server(tmp_path, late=late) as port:
        found = {one.what: one for one in reaching.reach(SiteConfig.read(site(tmp_path, port=port)))}
    assert (found["clock"].status, words in found["clock"].words) == (status, True), found["clock"]


def test_the_bounds_of_the_clock_are_within_flowers_own() -> None:
    assert reaching.AHEAD_SECONDS < SYSTEM_TIME_TOLERANCE
    assert reaching.BEHIND_SECONDS < TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE


@pytest.mark.parametrize(("epsilon", "delta"), [(5.0, 1e-6), (1.0, 1e-3)])
def test_a_budget_of_which_epsilon_or_delta_is_spent_is_not_ready(tmp_path: Path, epsilon: float, delta: float) -> None:
    known = SitePolicy.read(site(tmp_path).with_name("policy.yaml"))
    ledger = Ledger(known.ledger_path, key=load_key(known.key_path), head_path=known.head_path, made=True)
    plan = {"stages": [{"name": "generator", "steps": 1}]}
    ledger.open_plan("run", digest_of(plan), plan, epsilon=epsilon, delta=delta, limit=Limit(5.0, 1e-3))
    status, words = looked(tmp_path)["budget"]
    assert (status, "nothing can be asked any more" in words) == ("not ready", True)


def test_a_certificate_that_has_ended_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    last_year = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=366)
    monkeypatch.setattr(certificates, "_now", lambda: last_year)
    with server(tmp_path, days=365) as port:
        (found,) = reaching.reach(SiteConfig.read(site(tmp_path, port=port)))
    assert (found.status, "expired" in found.words) == ("not ready", True)
