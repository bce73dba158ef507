"""What Flower says of a site's key, and how it is understood."""

import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from flwr.proto.control_pb2 import ListNodesResponse
from flwr.proto.node_pb2 import NodeInfo
from flwr.supercore.error import ApiErrorCode
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE

from fedmedgen.deployment import certificates, flower_cli
from fedmedgen.deployment.flower_cli import CODES, FlowerCli, KeyTakenError, NoNodeError
from fedmedgen.errors import RunError


@contextmanager
def listing(folder: Path, nodes: list[NodeInfo]) -> Iterator[FlowerCli]:
    """A SuperLink that can do nothing but name its nodes."""
    key = certificates.new_key()
    authority = certificates.authority(key, "chest")
    certificates.write_certificate(folder / "ca.crt", authority)
    certificates.write_certificate(folder / "server.crt", certificates.for_server(key, ["a"], 10, (key, authority)))
    certificates.write_key(folder / "server.key", key)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            body = ListNodesResponse(nodes_info=nodes, now="2026-01-01T00:00:00+00:00").SerializeToString()
            self.send_response(200 if self.path == "/v1/control/list-nodes" else 404)
            self.send_header("Content-Type", PROTOBUF_MEDIA_TYPE)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    link = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.crt", folder / "server.key")
    link.socket = context.wrap_socket(link.socket, server_side=True)
    threading.Thread(target=link.serve_forever, daemon=True).start()
    try:
        yield FlowerCli(folder, link.server_address[1], folder / "ca.crt")
    finally:
        link.shutdown()
        link.server_close()


def test_a_sites_node_is_found_by_its_key(tmp_path: Path) -> None:
    files = [tmp_path / f"{name}.pub" for name in ("north", "south", "west")]
    for file in files:
        file.write_bytes(certificates.public_ssh(certificates.new_key()))
    north, south = (public_key_to_bytes(load_ssh_public_key(file.read_bytes())) for file in files[:2])  # type: ignore[arg-type]
    nodes = [
        NodeInfo(node_id=2**63 + 1, status="registered", public_key=north),
        NodeInfo(node_id=2, status="unregistered", public_key=south),
    ]
    with listing(tmp_path, nodes) as cli:
        assert [cli.find(file) for file in files] == [(2**63 + 1, "registered"), (2, "unregistered"), None]
        files[0].write_text("no key")
        with pytest.raises(RunError, match="public key at"):
            cli.find(files[0])
    with pytest.raises(RunError, match="can't be had"):
        cli.find(files[1])


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("[code: 23] Public key already in use.", KeyTakenError),
        ("[code: 24] Node ID not found for account.", NoNodeError),
        ("[code: 22] The provided public key is not valid.", RunError),
    ],
)
def test_what_flower_says_of_a_key_is_told_from_other_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, kind: type[RunError]
) -> None:
    program = tmp_path / "flwr"
    said = json.dumps({"success": False, "error-message": f"Using SuperLink: fedmedgen\n\n{words}"})
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{said}\nEND\n")
    program.chmod(0o700)
    monkeypatch.setattr(flower_cli, "BIN", tmp_path)
    with pytest.raises(RunError) as caught:
        FlowerCli(tmp_path, 1, tmp_path / "ca.crt").unregister(1)
    assert type(caught.value) is kind


def test_the_codes_are_flowers_own() -> None:
    known = {f"[code: {ApiErrorCode.PUBLIC_KEY_ALREADY_IN_USE}]", f"[code: {ApiErrorCode.NODE_NOT_FOUND}]"}
    assert set(CODES) == known
