"""The server's SuperLink: Flower's own program, with a doorman at its one port.

Sites come from outside; who submits studies or carries them out comes from this machine. Flower serves both on one
port and asks only sites who they are.

`python -m fedmedgen.deployment.superlink FOLDER [option of flower-superlink …]`, refused callers in FOLDER.
"""

import asyncio.sslproto
import ipaddress
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
from flwr.superlink import extensions
from flwr.superlink.cli import flower_superlink
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fedmedgen.deployment import security_log

FOR_ALL = ("/v1/fleet/",)  # where Flower asks each site for its signature
PLAIN_FOR_ALL = ("/health",)
REFUSED = {
    401: "not who it must be, by its key and signature",
    403: "not who it must be, by its key and signature",
    412: "no site by its key: never registered, revoked, or there already",
}


class Doorman:
    """Lets callers from other machines to the sites' door alone, and notes whom any door turned away."""

    def __init__(self, app: ASGIApp, folder: Path) -> None:
        self.app, self.folder = app, folder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
        elif not _may_pass(scope):
            self._note(scope, "only sites may call from other machines")
            await _refuse(scope, send)
        else:
            await self.app(scope, receive, partial(self._watched, scope, send))

    async def _watched(self, scope: Scope, send: Send, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] in REFUSED:
            self._note(scope, REFUSED[message["status"]])
        await send(message)

    def _note(self, scope: Scope, why: str) -> None:
        security_log.note_bounded(self.folder, "refused", peer=_peer(scope), path=scope["path"], why=why)


def _may_pass(scope: Scope) -> bool:
    return scope["path"].startswith(FOR_ALL) or scope["path"] in PLAIN_FOR_ALL or _is_here(_peer(scope))


def _peer(scope: Scope) -> str:
    return str((scope.get("client") or ("unknown",))[0])


def _is_here(peer: str) -> bool:
    """Whether a call comes from this very machine; other loopback addresses are what containers and tests come from."""
    try:
        address = ipaddress.ip_address(peer)
    except ValueError:
        return False
    plain = getattr(address, "ipv4_mapped", None) or address
    return str(plain) in ("127.0.0.1", "::1")


async def _refuse(scope: Scope, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": b"only sites may call from other machines"})


def note_failed_handshakes(folder: Path) -> None:
    """Log callers without TLS, and those that don't take the server's certificate, of which asyncio says nothing."""
    protocol: Any = asyncio.sslproto.SSLProtocol
    inner: Callable[..., None] = protocol._on_handshake_complete

    def watched(self: Any, error: BaseException | None) -> None:
        if error is not None:
            peer = (self._transport.get_extra_info("peername") or ("unknown",))[0] if self._transport else "unknown"
            security_log.note_bounded(folder, "refused", peer=str(peer), path="", why=f"no TLS: {error}")
        inner(self, error)

    protocol._on_handshake_complete = watched


def main(words: list[str]) -> None:
    """Run Flower's program with the doorman in front of everything."""
    folder, own = Path(words[0]), extensions.get_middleware
    extensions.get_middleware = lambda: (Middleware(Doorman, folder=folder), *own())
    note_failed_handshakes(folder)
    # its handshakes can be watched; nobody's word is taken for an address
    uvicorn.run = partial(uvicorn.run, loop="asyncio", proxy_headers=False)
    sys.argv = ["flower-superlink", *words[1:]]
    flower_superlink()


if __name__ == "__main__":
    main(sys.argv[1:])
