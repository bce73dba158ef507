"""The doorman: other machines reach the sites' door alone, and who was turned away is written down."""

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from fedmedgen.deployment import security_log
from fedmedgen.deployment.superlink import Doorman


def asked(folder: Path, peer: str, path: str, status: int = 200) -> int:
    """The status that a caller gets from an app that would answer everything."""

    def answer(_: Request) -> PlainTextResponse:
        return PlainTextResponse("inside", status_code=status)

    app = Starlette(routes=[Route("/{path:path}", answer)], middleware=[Middleware(Doorman, folder=folder)])
    return int(TestClient(app, client=(peer, 1)).get(path).status_code)


def noted(folder: Path) -> list[dict[str, Any]]:
    file = folder / "security.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


@pytest.mark.parametrize("path", ["/v1/fleet/pull-messages", "/health"])
@pytest.mark.parametrize("peer", ["127.0.0.1", "203.0.113.7"])
def test_sites_and_the_question_for_health_may_come_from_anywhere(tmp_path: Path, peer: str, path: str) -> None:
    assert asked(tmp_path, peer, path) == 200
    assert noted(tmp_path) == []


@pytest.mark.parametrize(
    "path",
    ["/v1/control/start-run", "/v1/control/list-nodes", "/v1/runtime/pull-app-inputs", "/docs", "/openapi.json", "/",
     "/v1/fleet", "/v1/fleetx/a", "//v1/fleet/a", "/health/x", "/V1/FLEET/a"],
)  # fmt: skip
@pytest.mark.parametrize("peer", ["203.0.113.7", "127.0.0.2", "2001:db8::1", "::ffff:203.0.113.7", "testclient"])
def test_everything_else_is_for_this_machine_alone(tmp_path: Path, peer: str, path: str) -> None:
    assert asked(tmp_path, peer, path) == 403
    (line,) = noted(tmp_path)
    assert (line["event"], line["peer"]) == ("refused", peer)


@pytest.mark.parametrize("peer", ["127.0.0.1", "::1", "::ffff:127.0.0.1"])
def test_this_machine_may_do_all(tmp_path: Path, peer: str) -> None:
    assert asked(tmp_path, peer, "/v1/control/start-run") == 200


@pytest.mark.parametrize("status", [401, 403])
def test_whom_flower_turns_away_is_written_down_too(tmp_path: Path, status: int) -> None:
    assert asked(tmp_path, "203.0.113.7", "/v1/fleet/activate-node", status) == status
    (line,) = noted(tmp_path)
    assert (line["peer"], line["path"]) == ("203.0.113.7", "/v1/fleet/activate-node")
    assert "key" in line["why"]


def test_strangers_fill_no_disk_with_their_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(security_log, "MOST_BYTES", 1000)
    for _ in range(60):
        asked(tmp_path, "203.0.113.7", "/v1/control/start-run")
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert set(sizes) == {"security.jsonl", "security.jsonl.1"}
    assert max(sizes.values()) < 1300
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert all(json.loads(line)["event"] == "refused" for line in path.read_text().splitlines())


def test_a_forwarded_address_is_nobodys_word(tmp_path: Path) -> None:
    def answer(_: Request) -> PlainTextResponse:
        return PlainTextResponse("inside")

    app = Starlette(routes=[Route("/{path:path}", answer)], middleware=[Middleware(Doorman, folder=tmp_path)])
    client = TestClient(app, client=("203.0.113.7", 1), headers={"X-Forwarded-For": "127.0.0.1"})
    assert client.get("/v1/control/start-run").status_code == 403
