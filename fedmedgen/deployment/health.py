"""A health endpoint on this machine alone: 200 where all is well, else 503, and why as JSON."""

import http.client
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from fedmedgen.errors import RunError

State = Callable[[], Mapping[str, Any]]
"""What there is to say; `ok` decides the status."""


def _said(state: State) -> Mapping[str, Any]:
    try:
        return state()
    except Exception as error:  # no answer at all would say less
        return {"ok": False, "error": f"{type(error).__name__}: {error}"}


@contextmanager
def serving(port: int, state: State) -> Iterator[None]:
    """Answer GET /health on 127.0.0.1 meanwhile.

    **Raises** `RunError` where the port is taken.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != "/health":
                self.send_error(404)
                return
            said = _said(state)
            body = json.dumps(said, default=str).encode()
            self.send_response(200 if said.get("ok") else 503)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing: what asks for health does so often."""

    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except OSError as error:
        raise RunError(f"the health endpoint's port {port} can't be used ({error}): set another health_port") from error
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="health", daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


def answers(port: int) -> bool:
    """Whether anything answers there, be it well or not."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    with closing(connection), suppress(OSError, http.client.HTTPException):
        connection.request("GET", "/health")
        connection.getresponse()
        return True
    return False
