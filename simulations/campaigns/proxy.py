"""A line between a site and its server that can be cut: every connection breaks, and none comes about until mended."""

import socket
import threading
from contextlib import suppress

CHUNK = 65_536


class Line:
    """Passes bytes on between a free port on this machine and the server's."""

    def __init__(self, server_port: int) -> None:
        self._server_port, self._whole, self._open = server_port, True, set[socket.socket]()
        self._door = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._door.getsockname()[1])
        threading.Thread(target=self._listen, daemon=True).start()

    def cut(self) -> None:
        self._whole = False
        for end in list(self._open):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        self._whole = True

    def close(self) -> None:
        self.cut()
        with suppress(OSError):
            self._door.shutdown(socket.SHUT_RDWR)
        self._door.close()

    def _listen(self) -> None:
        while True:
            try:
                caller, _ = self._door.accept()
            except OSError:
                if self._door.fileno() < 0:
                    return
                continue
            server = None
            with suppress(OSError):
                server = socket.create_connection(("127.0.0.1", self._server_port), 10) if self._whole else None
            if server is None:
                caller.close()
                continue
            server.settimeout(None)
            self._open |= {caller, server}
            for one, other in ((caller, server), (server, caller)):
                threading.Thread(target=self._pass_on, args=(one, other), daemon=True).start()

    def _pass_on(self, one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while content := one.recv(CHUNK):
                other.sendall(content)
        for end in (one, other):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
            self._open.discard(end)
