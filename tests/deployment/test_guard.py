"""A bundle that the site's policy doesn't list never runs a line at the site, on Flower's own programs."""

import hashlib
import json
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from flwr.supercore.constant import TASK_TYPE_TO_COMMAND

from fedmedgen.deployment import guard, supernode
from fedmedgen.errors import PolicyError, SettingsError
from fedmedgen.federation.policy import SitePolicy

BIN = Path(sys.executable).parent
WAIT = 120.0
PYPROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "guest"
version = "1.0.0"
description = "says that it ran"
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "somebody"
[tool.flwr.app.components]
serverapp = "guest.server:app"
clientapp = "guest.client:app"
[tool.flwr.app.config]
out = ""
"""
CLIENT = """
import os
from pathlib import Path
from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp
Path({mark!r}).write_text(os.environ.get("FEDMEDGEN_BUNDLE", "unchecked"))
app = ClientApp()
@app.query()
def query(message, context):
    return Message(RecordDict(), reply_to=message)
"""
SERVER = """
import json
import time
from pathlib import Path
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp
app = ServerApp()
@app.main()
def main(grid, context):
    while not (nodes := list(grid.get_node_ids())):
        time.sleep(0.2)
    asked = [Message(RecordDict({"c": ConfigRecord({"a": 1})}), dst_node_id=nodes[0], message_type="query")]
    replies = list(grid.send_and_receive(asked, timeout=60))
    words = [(r.error.code, r.error.reason) if r.has_error() else None for r in replies]
    Path(context.run_config["out"]).write_text(json.dumps(words))
"""


def policy_file(folder: Path, *bundles: str) -> Path:
    policy = SitePolicy(
        site="north",
        folder="state",
        patients_declared=30,
        labelled_declared=30,
        lifetime_epsilon=10.0,
        lifetime_delta=1e-5,
        data_root="films",
        bundles=bundles,
    )
    policy.write(folder / "policy.yaml")
    return folder / "policy.yaml"


def test_only_a_listed_bundle_passes(tmp_path: Path) -> None:
    listed, other = b"the bundle that was checked", b"the bundle that was checked."
    policy = policy_file(tmp_path, hashlib.sha256(listed).hexdigest())
    assert guard.check_bundle(listed, policy) == hashlib.sha256(listed).hexdigest()
    with pytest.raises(guard.BundleError, match=hashlib.sha256(other).hexdigest()):
        guard.check_bundle(other, policy)
    with pytest.raises(guard.BundleError, match="lists 0 bundles"):
        guard.check_bundle(listed, policy_file(tmp_path))


def test_a_refused_bundle_is_written_down_for_the_owner_alone_even_before_there_is_a_ledger(tmp_path: Path) -> None:
    policy = policy_file(tmp_path, "0" * 64)
    for _ in range(2):
        with pytest.raises(guard.BundleError):
            guard.check_bundle(b"other", policy)
    log = tmp_path / "state" / "security.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(line["event"], line["sha256"]) for line in lines] == [
        ("refused", hashlib.sha256(b"other").hexdigest())
    ] * 2
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


def test_a_hash_that_is_none_is_refused_in_the_policy(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="64 lower-case hexadecimal"):
        policy_file(tmp_path, "*")


@pytest.mark.parametrize("program", sorted(set(TASK_TYPE_TO_COMMAND.values()) - {guard.CLIENTAPP}))
def test_every_other_program_that_flower_may_start_for_a_bundle_is_refused(tmp_path: Path, program: str) -> None:
    supernode.write_programs(tmp_path / "bin")
    done = subprocess.run([tmp_path / "bin" / program, "--token", "x"], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "a site runs flwr-clientapp alone" in done.stderr


def test_a_client_that_would_install_what_a_bundle_asks_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="installs nothing"):
        guard.main([guard.CLIENTAPP, "--token", "x", "--allow-runtime-dependency-installation"])


def test_a_client_ends_with_what_started_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running: list[str] = []
    flower = SimpleNamespace(
        install_from_fab=None, get_load_client_app_fn=None, Error=None,
        flwr_clientapp=lambda: running.extend(thread.name for thread in threading.enumerate()),
    )  # fmt: skip
    monkeypatch.setenv(guard.POLICY, str(tmp_path / "policy.yaml"))
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setattr(guard.importlib, "import_module", lambda _: flower)
    guard.main([guard.CLIENTAPP])
    assert "end-with-parent" in running


@pytest.mark.parametrize(
    "option",
    ["--isolation", "--isol", "--node-config=policy='x'", "--node-c", "--allow-runtime-dependency-installation"],
)
def test_options_that_lead_past_the_guard_are_refused(tmp_path: Path, option: str) -> None:
    with (
        pytest.raises(PolicyError, match="set by the site's launcher"),
        supernode.started(policy_file(tmp_path, "0" * 64), ["--insecure", option]),
    ):
        pass


def test_a_site_without_a_listed_bundle_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="lists no bundle"), supernode.started(policy_file(tmp_path), []):
        pass


def guest(folder: Path, mark: Path) -> Path:
    """The folder of an app whose client leaves a mark where a line of it runs."""
    app = folder / "app"
    (app / "guest").mkdir(parents=True)
    (app / "pyproject.toml").write_text(PYPROJECT)
    (app / "guest" / "__init__.py").write_text("")
    (app / "guest" / "client.py").write_text(CLIENT.format(mark=str(mark)))
    (app / "guest" / "server.py").write_text(SERVER)
    return app


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(good: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + WAIT
    while not good():
        assert time.monotonic() < end, f"{what} did not come about within {WAIT:g} s"
        time.sleep(0.3)


def listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def superlink(folder: Path, environment: dict[str, str], port: int) -> Iterator[None]:
    """A SuperLink on one port, without TLS, and a connection called `here` to it."""
    (folder / "empty").mkdir()
    Path(environment["FLWR_HOME"]).mkdir()
    (Path(environment["FLWR_HOME"]) / "config.toml").write_text(
        f'[superlink.here]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    words = [BIN / "flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "superlink.log").open("w") as log:
        process = subprocess.Popen(words, cwd=folder / "empty", env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            wait_for(lambda: listening(port), "the SuperLink")
            yield
        finally:
            family = psutil.Process(process.pid).children(recursive=True)
            process.terminate()
            process.wait(20)
            _, alive = psutil.wait_procs(family, timeout=5)
            for child in alive:
                child.kill()


def said_by_the_site(app: Path, environment: dict[str, str]) -> list[list[object] | None]:
    """What the app's server got back from the site: an error's code and text, or None for a plain reply."""
    out = app.with_suffix(".json")
    words = [BIN / "flwr", "run", app, "here", "--run-config", f'out="{out}"']
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    wait_for(lambda: out.exists() and out.stat().st_size > 0, "the run's end")
    words_back: list[list[object] | None] = json.loads(out.read_text())
    return words_back


def test_an_unlisted_bundle_never_runs_a_line_and_a_listed_one_does(tmp_path: Path) -> None:
    port, mark = free_port(), tmp_path / "a-line-ran"
    environment = {**os.environ, "FLWR_HOME": str(tmp_path / "home"), "PATH": f"{BIN}:{os.environ['PATH']}"}
    checked, other = guest(tmp_path / "checked", mark), guest(tmp_path / "other", mark)
    (other / "guest" / "more.py").write_text("")
    subprocess.run([BIN / "flwr", "build", "--app", checked], cwd=tmp_path, env=environment, check=True)
    (bundle,) = tmp_path.glob("*.fab")
    digest = hashlib.sha256(bundle.read_bytes()).hexdigest()
    options = ["--insecure", "--superlink", f"127.0.0.1:{port}", "--port", str(free_port())]
    with superlink(tmp_path, environment, port), supernode.started(policy_file(tmp_path, digest), options):
        ((code, text),) = said_by_the_site(other, environment)
        assert (bool(code), text) == (True, "see the site's own log")
        assert not mark.exists()
        assert said_by_the_site(checked, environment) == [None]
        assert mark.read_text() == digest
