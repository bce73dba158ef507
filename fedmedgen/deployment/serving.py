"""`fedmedgen serve`: a SuperLink that is kept alive, the sites that may come, and the studies that were submitted."""

import fcntl
import http.client
import logging
import ssl
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from cryptography import x509

from fedmedgen.deployment import certificates, health
from fedmedgen.deployment.flower_cli import FlowerCli, environment
from fedmedgen.deployment.members import Members
from fedmedgen.deployment.processes import Kept, Program
from fedmedgen.deployment.project import ServerConfig
from fedmedgen.deployment.studies import Studies
from fedmedgen.errors import FedmedgenError, RunError

logger = logging.getLogger(__name__)

TICK_SECONDS = 2.0
LOOK_SECONDS = 30.0


class Server:
    """One deployment's server; `run` returns when `stop` is set, and everything it started has ended by then."""

    def __init__(self, config: ServerConfig) -> None:
        _require_files(config)
        self.config, self.stop = config, threading.Event()
        self.state = Path(config.state)
        self.state.mkdir(parents=True, exist_ok=True)
        self.cli = FlowerCli(self.state / "flower", config.port, Path(config.ca))
        self.members = Members(Path(config.sites), self.state / "members.json", self.cli)
        self.studies = Studies(
            studies_folder(config), Path(config.runs), Path(config.app), self.members.file, self.cli,
            config.attempts, config.attempt_seconds,
        )  # fmt: skip
        first, longest = config.restart_seconds, config.restart_longest
        self.link = Kept(self._program(), self.state / "logs" / "superlink.log", first=first, longest=longest)
        self.healthy = False
        self.served: x509.Certificate | None = None  # as the SuperLink showed it last

    def run(self) -> None:
        """Serve until told to stop.

        **Raises** `RunError` where another `serve` holds the state folder, or a port is taken.
        """
        with _alone(self.state), health.serving(self.config.health_port, self.said):
            self.cli.prepare()
            self.link.start()
            try:
                looked = 0.0
                while not self.stop.wait(TICK_SECONDS):
                    looked = self._tick(looked)
            finally:
                self.link.stop()

    def said(self) -> dict[str, Any]:
        """What the health endpoint says."""
        running = self.link.running and self.healthy
        kept = certificates.read_certificate(Path(self.config.certificate))
        served = self.served or kept
        return {
            "ok": running,
            "superlink": "running" if running else self.link.status,
            "restarts": self.link.restarts,
            "sites": self.members.said(),
            "studies": self.studies.said(),
            "certificate_days_left": round(certificates.days_left(served), 1),
            "restart_needed": "" if served == kept else f"{self.config.certificate} is not the one that sites see yet",
        }

    def _tick(self, looked: float) -> float:
        self.healthy = self.link.running and self._answers()
        if not self.healthy:
            return 0.0
        try:
            if self.link.started.is_set():
                self.link.started.clear()
                self.studies.interrupted()
            self.members.keep()
            self.studies.keep()
            looked += TICK_SECONDS
            if looked >= LOOK_SECONDS or not self.members.online:
                self.members.look()
                looked = 0.0
        except FedmedgenError as error:
            logger.error("%s", error)
        except Exception:  # whatever lies in the state folder, sites and other studies go on
            logger.exception("this look at sites and studies failed; the next follows")
        return looked

    def _answers(self) -> bool:
        """Whether the SuperLink does; notes the certificate that it shows."""
        context = ssl.create_default_context(cafile=self.config.ca)
        connection = http.client.HTTPSConnection("127.0.0.1", self.config.port, timeout=5, context=context)
        with closing(connection), suppress(OSError, http.client.HTTPException):
            connection.connect()
            self.served = x509.load_der_x509_certificate(connection.sock.getpeercert(binary_form=True) or b"")
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        return False

    def _program(self) -> Program:
        config, empty = self.config, self.state / "empty"
        empty.mkdir(exist_ok=True)  # a package folder beside the SuperLink would shadow the app's own
        words = [
            sys.executable, "-m", "fedmedgen.deployment.superlink", str(self.state),
            "--ssl-ca-certfile", config.ca, "--ssl-certfile", config.certificate, "--ssl-keyfile", config.key,
            "--enable-supernode-auth", "--host", config.host, "--port", str(config.port),
            "--database", str(self.state / "superlink.db"), "--disable-runtime-dependency-installation",
        ]  # fmt: skip
        return Program(words, empty, environment(self.state / "flower"))


def studies_folder(config: ServerConfig) -> Path:
    return Path(config.state) / "studies"


@contextmanager
def _alone(state: Path) -> Iterator[None]:
    """**Raises** `RunError` where another process serves from this folder."""
    with (state / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunError(f"another `fedmedgen serve` runs from {state}: stop it first") from error
        yield


def _require_files(config: ServerConfig) -> None:
    for name in ("ca", "certificate", "key", "sites", "app"):
        if not Path(getattr(config, name)).exists():
            raise RunError(f"expected {name} at {getattr(config, name)}; there is none: provision writes it")
    if certificates.days_left(certificates.read_certificate(Path(config.certificate))) < 0:
        raise RunError(f"{config.certificate} has ended, so no site would connect: renew it by `fedmedgen provision`")
