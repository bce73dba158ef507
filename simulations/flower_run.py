"""A study through `flwr run`: a SuperLink of our own on free ports, a true exit status, every process ended."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from fedmedgen.deployment.processes import Family
from fedmedgen.errors import RunError
from server.results import COMMIT, commit

APP = Path(__file__).resolve().parents[1]
START_SECONDS = 90.0
POLL_SECONDS = 1.0
ASK_SECONDS = 20.0
ENDED = ('"stage": "completed"', '"stage": "failed"')
QUIET = {
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
}


def run_flower(run_config: Mapping[str, Any], *, nodes: int, cpus: int, gpus: float) -> float:
    """Run a study on Flower's simulation runtime; the peak memory in MB of all its processes together.

    **Raises** `RunError` with the end of the log where the run did not complete.
    """
    with tempfile.TemporaryDirectory(prefix="fedmedgen-flwr-") as name:
        home = Path(name)
        environment = _environment(home)
        with _superlink(home, environment) as family:
            run = _submit(home, environment, run_config, nodes=nodes, cpus=cpus, gpus=gpus)
            status = _wait(run, environment, family, Path(str(run_config["out"])) / "progress.json")
            if status != "finished:completed":
                raise RunError(f"the Flower run ended as {status}: {_reason(run_config)}\n{_log_end(home)}")
            return family.peak_mb


def _environment(home: Path) -> dict[str, str]:
    bin_folder = str(Path(sys.executable).parent)
    return {
        **os.environ,
        **QUIET,
        COMMIT: commit(),
        "FLWR_HOME": str(home / "flwr"),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(_free_port()),
        "PATH": bin_folder + os.pathsep + os.environ.get("PATH", ""),
    }


@contextmanager
def _superlink(home: Path, environment: dict[str, str]) -> Iterator[Family]:
    """A SuperLink started from an empty folder: a package folder beside it would shadow the app bundle."""
    empty = home / "empty"
    empty.mkdir()
    port = environment["FLWR_LOCAL_SUPERLINK_HTTP_API_PORT"]
    words = ["flower-superlink", "--insecure", "--simulation", "--isolation", "subprocess", "--host", "127.0.0.1",
             "--port", port, "--database", str(home / "state.db")]  # fmt: skip
    with (home / "superlink.log").open("w") as log:
        process = subprocess.Popen(
            words, cwd=empty, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        family = Family(psutil.Process(process.pid))
        try:
            _wait_until_healthy(process, port, home)
            yield family
        finally:
            family.end()
            process.wait()


def _wait_until_healthy(process: subprocess.Popen[bytes], port: str, home: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        with (
            suppress(urllib.error.URLError, OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2),
        ):
            return
        time.sleep(0.3)
    raise RunError(f"the SuperLink did not start within {START_SECONDS:g} s\n{_log_end(home)}")


def _submit(
    home: Path, environment: dict[str, str], run_config: Mapping[str, Any], *, nodes: int, cpus: int, gpus: float
) -> str:
    config = home / "run.toml"
    config.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in run_config.items()))
    federation = (
        f"num-supernodes={nodes} client-resources-num-cpus={cpus} client-resources-num-gpus={gpus} "
        f"init-args-num-cpus={os.cpu_count() or 1}"
    )
    words = ["flwr", "run", str(APP), "--run-config", str(config), "--federation-config", federation]
    done = _flwr([*words, "--format", "json"], environment)
    answer = _json(done.stdout)
    if done.returncode or not answer.get("success", True) or "run-id" not in answer:
        raise RunError(f"Flower refused the run: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return str(answer["run-id"])


def _wait(run: str, environment: dict[str, str], family: Family, progress: Path) -> str:
    """`flwr run` exits 0 whatever comes of the run, so its state is asked for until it has finished.

    Asking starts a Python process, so it is done seldom, and at once when the run's own progress says that it ended.
    """
    asked = time.monotonic()
    while True:
        family.look()
        ended = progress.is_file() and any(word in progress.read_text() for word in ENDED)
        if time.monotonic() - asked > (POLL_SECONDS if ended else ASK_SECONDS):
            asked = time.monotonic()
            answer = _json(_flwr(["flwr", "list", "--run-id", run, "--format", "json"], environment).stdout)
            runs = answer.get("runs") or [{}]
            status = str(runs[0].get("status", ""))
            if status.startswith("finished"):
                return status
        if not family.root.is_running():
            return "lost: the SuperLink ended"
        time.sleep(POLL_SECONDS)


def _flwr(words: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=180, cwd=APP)


def _json(text: str) -> dict[str, Any]:
    start = text.find("{")
    with suppress(ValueError):
        found = json.JSONDecoder().raw_decode(text[start:])[0] if start >= 0 else {}
        return found if isinstance(found, dict) else {}
    return {}


def _reason(run_config: Mapping[str, Any]) -> str:
    result = Path(str(run_config["out"])) / "result.json"
    return str(json.loads(result.read_text()).get("reason", "")) if result.is_file() else "no result was written"


def _log_end(home: Path) -> str:
    log = home / "superlink.log"
    return log.read_text(errors="replace")[-3000:] if log.is_file() else ""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
