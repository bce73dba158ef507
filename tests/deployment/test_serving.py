"""What a server says of itself: the sites that are refused, and the certificate that sites really see."""

import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fedmedgen.deployment import certificates
from fedmedgen.deployment.certificates import Key
from fedmedgen.deployment.project import ServerConfig
from fedmedgen.deployment.serving import Server


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()


@contextmanager
def link(folder: Path, port: int = 0) -> Iterator[int]:
    """What stands in for a SuperLink that has just been started with the kit's certificate; its port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.crt", folder / "server.key")
    served = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    served.socket = context.wrap_socket(served.socket, server_side=True)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    try:
        yield int(served.server_address[1])
    finally:
        served.shutdown()
        served.server_close()


@pytest.fixture
def key(tmp_path: Path) -> Key:
    """The authority's and the server's, with a certificate of ten days in the kit."""
    key = certificates.new_key()
    certificates.write_certificate(tmp_path / "ca.crt", certificates.authority(key, "chest"))
    certificates.write_key(tmp_path / "server.key", key)
    renew(tmp_path, key, 10)
    for name in ("sites", "app"):
        (tmp_path / name).mkdir()
    return key


def renew(folder: Path, key: Key, days: int) -> None:
    authority = certificates.read_certificate(folder / "ca.crt")
    certificates.write_certificate(folder / "server.crt", certificates.for_server(key, ["a"], days, (key, authority)))


def server(folder: Path, port: int) -> Server:
    (folder / "server.yaml").write_text(f"port: {port}\n")
    return Server(ServerConfig.read(folder / "server.yaml"))


def test_health_tells_the_days_of_the_certificate_that_sites_see(tmp_path: Path, key: Key) -> None:
    with link(tmp_path) as port:
        at = server(tmp_path, port)
        assert at._answers()
        assert (round(at.said()["certificate_days_left"]), at.said()["restart_needed"]) == (10, "")
        renew(tmp_path, key, 365)
        assert at._answers()
        said = at.said()
        assert round(said["certificate_days_left"]) == 10
        assert said["restart_needed"] == f"{tmp_path / 'server.crt'} is not the one that sites see yet"
    with link(tmp_path, port):
        assert at._answers()
        assert (round(at.said()["certificate_days_left"]), at.said()["restart_needed"]) == (365, "")


def test_a_server_whose_superlink_has_not_answered_yet_tells_the_days_of_its_file(tmp_path: Path, key: Key) -> None:
    at = server(tmp_path, 1)
    assert not at._answers()
    assert (round(at.said()["certificate_days_left"]), at.said()["restart_needed"]) == (10, "")


def test_a_site_whose_key_can_not_come_is_shown_as_refused(tmp_path: Path, key: Key) -> None:
    at = server(tmp_path, 1)
    at.members.known, at.members.online = (
        {"north": {"node": "1", "key": ""}, "west": {"node": "2", "key": ""}},
        ("west",),
    )
    at.members.refused = {"south": ""}
    assert at.said()["sites"] == {"north": "away", "west": "online", "south": "refused"}
