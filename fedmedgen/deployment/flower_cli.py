"""Flower's own command line on a SuperLink of this machine: runs, and the sites that may come."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_public_key

from fedmedgen.errors import RunError

CONNECTION = "fedmedgen"
QUIET = {
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
}
BIN = Path(sys.executable).parent
SECONDS = 180.0


class KeyTakenError(RunError):
    """Flower has a node of this key already, or had one: it takes no key a second time."""


class NoNodeError(RunError):
    """Flower has no such node, or no longer."""


CODES: Mapping[str, type[RunError]] = {"[code: 23]": KeyTakenError, "[code: 24]": NoNodeError}  # in Flower's words


def environment(home: Path) -> dict[str, str]:
    """What Flower's programs run under: a home of their own, no telemetry, nothing installed for a bundle."""
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    path = os.pathsep.join([str(BIN), os.environ.get("PATH", "")])
    return {**kept, **QUIET, "FLWR_HOME": str(home), "PATH": path}


@dataclass(frozen=True)
class FlowerCli:
    """The commands, each a process of its own."""

    home: Path
    port: int
    ca: Path

    def prepare(self) -> None:
        """Name the connection in Flower's configuration."""
        self.home.mkdir(parents=True, exist_ok=True)
        (self.home / "config.toml").write_text(
            f"[superlink.{CONNECTION}]\n"
            f"address = {json.dumps(f'127.0.0.1:{self.port}')}\nroot-certificates = {json.dumps(str(self.ca))}\n"
        )

    def run(self, app: Path, run_config: Mapping[str, Any]) -> int:
        """Submit an app; the run's number."""
        config = self.home / "run.toml"
        config.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in run_config.items()))
        return int(self._ask("run", str(app), CONNECTION, "--run-config", str(config))["run-id"])

    def status(self, run: int) -> str:
        """How Flower says that a run is, such as `running` or `finished:completed`."""
        found = self._ask("list", CONNECTION, "--run-id", str(run))["runs"]
        return str(found[0]["status"]) if found else "unknown"

    def register(self, public_key: Path, name: str) -> int:
        """Let a site come; the number of its node.

        **Raises** `KeyTakenError` where Flower has had the key before, even of a site that may come no more.
        """
        return int(self._ask("supernode", "register", str(public_key), CONNECTION, "--name", name)["node-id"])

    def unregister(self, node: int) -> None:
        """Let a site come no more.

        **Raises** `NoNodeError` where Flower has no such node, or no longer.
        """
        self._ask("supernode", "unregister", str(node), CONNECTION)

    def nodes(self) -> dict[int, str]:
        """Each node's status: `online`, `offline`, `registered`, `unregistered`."""
        return {
            int(node["node-id"]): str(node["status"]) for node in self._ask("supernode", "list", CONNECTION)["nodes"]
        }

    def find(self, public_key: Path) -> tuple[int, str] | None:
        """The node of a site's key and its status; asked of Flower's API, for what its command lists names no keys.

        **Raises** `RunError` also where the file holds no key.
        """
        import httpx
        from flwr.proto.control_pb2 import ListNodesRequest
        from flwr.supercore.control import ControlHttpClient

        try:
            key = load_ssh_public_key(public_key.read_bytes())
        except (OSError, ValueError, UnsupportedAlgorithm) as error:
            raise RunError(f"expected a site's public key at {public_key}: {error}") from error
        content = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        client = ControlHttpClient.from_server_address(f"127.0.0.1:{self.port}", False, self.ca.read_bytes(), ())
        try:
            nodes = client.ListNodes(ListNodesRequest()).nodes_info
        except httpx.HTTPError as error:
            raise RunError(f"Flower's list of sites can't be had: {error}") from error
        finally:
            client.close()
        return next(((int(node.node_id), node.status) for node in nodes if node.public_key == content), None)

    def _ask(self, *words: str) -> dict[str, Any]:
        command = [str(BIN / "flwr"), *words, "--format", "json"]
        try:
            done = subprocess.run(
                command, cwd=self.home, env=environment(self.home), capture_output=True, text=True, check=False,
                timeout=SECONDS,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise RunError(f"flwr {words[0]} gave no answer within {SECONDS:g} s") from error
        answer = _last_object(done.stdout)
        if done.returncode or not answer.get("success", True):
            said = (done.stdout + done.stderr)[-1000:].strip()
            kind = next((kind for code, kind in CODES.items() if code in said), RunError)
            raise kind(f"flwr {' '.join(words[:2])} failed: {said}")
        return answer


def _last_object(text: str) -> dict[str, Any]:
    """The JSON object at the end of what a command said; words may stand before it."""
    start = text.find("{")
    while start >= 0:
        try:
            found = json.loads(text[start:])
        except ValueError:
            start = text.find("{", start + 1)
        else:
            return dict(found)
    return {}
