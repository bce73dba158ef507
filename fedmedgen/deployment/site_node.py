"""`fedmedgen join`: a site's SuperNode, guarded, and kept alive."""

import json
import socket
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from fedmedgen.deployment import health, security_log, supernode
from fedmedgen.deployment.preflight import require_fit
from fedmedgen.deployment.processes import Kept
from fedmedgen.deployment.project import SiteConfig
from fedmedgen.errors import PolicyError, RunError
from fedmedgen.federation.policy import SitePolicy

# A SuperNode whose handshake is broken off, by a proxy without a server behind it for instance, gives up for good, and
# its process stays.
GAVE_UP = "SSL/TLS handshake error detected"


class SiteNode:
    """One site's node; `run` returns when `stop` is set, and everything it started has ended by then."""

    def __init__(self, config: SiteConfig) -> None:
        for name in ("ca", "key"):
            if not Path(getattr(config, name)).is_file():
                raise RunError(
                    f"expected {name} at {getattr(config, name)}; there is none: it is part of the site's kit"
                )
        self.config, self.stop = config, threading.Event()
        self.policy = SitePolicy.read(Path(config.policy))
        if self.policy.site != config.site:
            raise PolicyError(f"site.yaml is of {config.site!r} and its policy of {self.policy.site!r}: make them one")
        require_fit(self.policy)
        self.node: Kept | None = None

    def run(self) -> None:
        """Take part until told to stop.

        **Raises** `PolicyError` for a policy that lists no bundle, `RunError` where the health port is taken.
        """
        config = self.config
        options = ["--root-certificates", config.ca, "--superlink", config.server,
                   "--auth-supernode-private-key", config.key, "--port", str(_free_port())]  # fmt: skip
        log = Path(config.state) / "logs" / "supernode.log"
        with (
            supernode.prepared(Path(config.policy), options) as program,
            health.serving(config.health_port, self.said),
        ):
            wait = {"first": config.restart_seconds, "longest": config.restart_longest}
            self.node = Kept(program, log, **wait, last_words=GAVE_UP)
            self.node.start()
            try:
                self.stop.wait()
            finally:
                self.node.stop()

    def said(self) -> dict[str, Any]:
        """What the health endpoint says."""
        node = self.node
        return {
            "ok": node is not None and node.running,
            "site": self.config.site,
            "supernode": node.status if node else "starting",
            "restarts": node.restarts if node else 0,
            "last_event": _last_line(Path(self.policy.folder) / security_log.NAME),
        }


def _last_line(path: Path) -> Any:
    if not path.is_file():
        return None
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4096))
        lines = file.read().splitlines()
    with suppress(ValueError):  # a full disk cuts a line short
        return json.loads(lines[-1]) if lines else None
    return lines[-1].decode(errors="replace")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
