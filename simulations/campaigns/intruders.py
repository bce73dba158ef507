"""Callers who must not get in: each tries the server's door as what it is; what it hears, and who notes it, is seen."""

import base64
import datetime
import http.client
import json
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from cryptography.hazmat.primitives import serialization
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.proto.fleet_pb2 import ActivateNodeRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.primitives.asymmetric import sign_message
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE

from fedmedgen.deployment import certificates
from fedmedgen.deployment.certificates import Key
from simulations.campaigns.deployment import Deployment, environment, free_port, wait_for

STRANGER = "127.0.0.2"  # another machine, as far as the server can see
Try = Callable[[Deployment], str]


def no_key(deployment: Deployment) -> str:
    """A site without a key."""
    return _answer(deployment, {})


def wrong_key(deployment: Deployment) -> str:
    """A key that nobody has registered."""
    return activate(deployment, certificates.new_key())


def stolen_name(deployment: Deployment) -> str:
    """A registered site's public key, signed by another private key."""
    own, other = site_key(deployment, deployment.sites[0]), certificates.new_key()
    return activate(deployment, own, signed_by=other)


def revoked_key(deployment: Deployment) -> str:
    """The key of a site that has been revoked: the last one."""
    return activate(deployment, site_key(deployment, deployment.sites[-1]))


def replay(deployment: Deployment) -> str:
    """A registered site's signed words, recorded a quarter of an hour ago."""
    old = datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=15)
    return activate(deployment, site_key(deployment, deployment.sites[0]), at=old)


def fresh_replay(deployment: Deployment) -> str:
    """A registered site's signed words, recorded two minutes ago inside TLS and sent with another body: taken."""
    then = datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=2)
    recorded, site = _signed(site_key(deployment, deployment.sites[0]), at=then), deployment.sites[0]
    node = int(json.loads((Path(deployment.server.state) / "members.json").read_text())[site]["node"])
    heard = set()
    for seconds in (30.0, 31.0):  # each word of the site's, then somebody else's
        body = SendNodeHeartbeatRequest(node=Node(node_id=node), heartbeat_interval=seconds).SerializeToString()
        heard.add(_answer(deployment, recorded, body=body, path="/v1/fleet/send-node-heartbeat"))
    return "; ".join(sorted(heard))


def plaintext(deployment: Deployment) -> str:
    """A caller without TLS."""
    with socket.create_connection(("127.0.0.1", deployment.server.port), 10, source_address=(STRANGER, 0)) as caller:
        caller.sendall(b"POST /v1/fleet/activate-node HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
        try:
            answer = caller.recv(100)
        except OSError as error:
            return f"refused: {error}"
    return f"refused: {answer[:20]!r}" if not answer.startswith(b"HTTP/1.1 2") else "let in"


def wrong_authority(deployment: Deployment) -> str:
    """A site that trusts another authority: it must not take this server for its own."""
    key = certificates.new_key()
    certificates.write_certificate(deployment.folder / "other.crt", certificates.authority(key, "other"))
    context = ssl.create_default_context(cafile=str(deployment.folder / "other.crt"))
    return _answer(deployment, {}, context=context)


def studies_from_outside(deployment: Deployment) -> str:
    """A registered site, or anybody, that would submit studies or list what runs."""
    answers = {_answer(deployment, {}, path=f"/v1/control/{what}") for what in ("start-run", "list-runs", "list-nodes")}
    return "; ".join(sorted(answers))


def results_from_outside(deployment: Deployment) -> str:
    """Anybody who would pass for the server's own app."""
    return _answer(deployment, {}, path="/v1/runtime/pull-app-inputs")


def expired_certificate(deployment: Deployment) -> str:
    """A server whose certificate has ended, of its own: a caller turns away, and so does `join`, in the site's log."""
    script = (
        "import sys; from pathlib import Path; from simulations.campaigns.intruders import serve_expired; "
        "serve_expired(Path(sys.argv[1]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(deployment.folder)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        context = ssl.create_default_context(cafile=str(deployment.folder / "expired-ca.crt"))
        heard = _answer(deployment, {}, context=context, port=port)
        return f"{heard}; {_said_by_join(deployment, port)}"
    finally:
        process.kill()
        process.wait()


def _said_by_join(deployment: Deployment, port: int) -> str:
    """What a site's own log says when it is sent to that server.

    **Raises** `RunError` where it says nothing of the certificate.
    """
    kit, folder = deployment.kit(deployment.sites[-1]), deployment.folder / "misled"
    folder.mkdir()
    config = {"site": deployment.sites[-1], "server": f"localhost:{port}", "health_port": free_port(),
              "ca": str(deployment.folder / "expired-ca.crt"), "key": str(kit / "site.key"),
              "policy": str(kit / "policy.yaml")}  # fmt: skip
    (folder / "site.yaml").write_text(yaml.safe_dump(config))
    log = folder / "state" / "logs" / "supernode.log"
    words = [str(Path(sys.executable).with_name("fedmedgen")), "join", "site.yaml"]
    join = subprocess.Popen(words, cwd=folder, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: log.is_file() and EXPIRED in log.read_text(), 120, f"{EXPIRED!r} in the site's log")
    finally:
        join.terminate()
        join.wait(60)
    (line, *_) = [line for line in log.read_text().splitlines() if EXPIRED in line]
    return f"the log of `join`: {line[line.index(EXPIRED) :]}"


def serve_expired(folder: Path) -> None:
    """A TLS server under a good authority whose certificate ended yesterday; says its port."""
    real, last_year = certificates._now, datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=366)
    authority_key, key = certificates.new_key(), certificates.new_key()
    authority = certificates.authority(authority_key, "expired")
    certificates._now = lambda: last_year
    issued = certificates.for_server(key, ["localhost"], 365, (authority_key, authority))
    certificates._now = real
    certificates.write_certificate(folder / "expired-ca.crt", authority)
    certificates.write_certificate(folder / "expired.crt", issued)
    certificates.write_key(folder / "expired.key", key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "expired.crt", folder / "expired.key")
    with socket.create_server(("127.0.0.1", 0)) as door:
        sys.stdout.write(f"{door.getsockname()[1]}\n")
        sys.stdout.flush()
        while True:
            caller, _ = door.accept()
            with suppress(OSError), context.wrap_socket(caller, server_side=True):
                pass


INTRUDERS: dict[str, tuple[Try, str]] = {  # and the beginning of what each hears: another refusal shows nothing
    "no key": (no_key, "refused: 401"),
    "wrong key": (wrong_key, "refused: 412"),
    "another's public key": (stolen_name, "refused: 401"),
    "revoked key": (revoked_key, "refused: 412"),
    "replay": (replay, "refused: 401"),
    "fresh replay": (fresh_replay, "let in"),  # Flower signs a time alone: good for 305 s with any body
    "plaintext": (plaintext, "refused: "),
    "wrong authority": (wrong_authority, "refused: unable to get local issuer certificate"),
    "expired certificate": (expired_certificate, "refused: certificate has expired"),
    "studies from outside": (studies_from_outside, "refused: 403"),
    "results from outside": (results_from_outside, "refused: 403"),
}
AT_THE_SITE = ("expired certificate",)  # refused by the caller: the real server never hears of it
NOT_REFUSED = ("fresh replay",)  # known, and said in docs/deployment.md
EXPIRED = "certificate has expired"


def good_site(deployment: Deployment) -> str:
    """What the last site hears before it is revoked, without which the refusals would show nothing."""
    return activate(deployment, site_key(deployment, deployment.sites[-1]))


def site_key(deployment: Deployment, site: str) -> Key:
    content = (deployment.kit(site) / "site.key").read_bytes()
    key: Any = serialization.load_ssh_private_key(content, password=None)
    return key  # type: ignore[no-any-return]


def activate(
    deployment: Deployment, key: Key, *, signed_by: Key | None = None, at: datetime.datetime | None = None
) -> str:
    """Ask to be taken for the site of a key, as Flower's SuperNode does."""
    headers = _signed(key, signed_by=signed_by, at=at)
    public = base64.b64decode(headers[FLEET_HTTP_PUBLIC_KEY_HEADER])
    body = ActivateNodeRequest(public_key=public, heartbeat_interval=30.0).SerializeToString()
    return _answer(deployment, headers, body=body)


def _signed(key: Key, *, signed_by: Key | None = None, at: datetime.datetime | None = None) -> dict[str, str]:
    """The headers of a call: all that Flower has a site sign is the time."""
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    stamp = (at or datetime.datetime.now(datetime.UTC)).isoformat()
    return {
        FLEET_HTTP_PUBLIC_KEY_HEADER: base64.b64encode(public).decode(),
        FLEET_HTTP_SIGNATURE_HEADER: base64.b64encode(sign_message(signed_by or key, stamp.encode("ascii"))).decode(),
        TIMESTAMP_HEADER: stamp,
    }


def _answer(
    deployment: Deployment,
    headers: dict[str, str],
    *,
    body: bytes = b"",
    path: str = "/v1/fleet/activate-node",
    context: ssl.SSLContext | None = None,
    port: int = 0,
) -> str:
    """What a caller from another machine hears: `let in`, or how it was refused."""
    context = context or ssl.create_default_context(cafile=deployment.server.ca)
    connection = http.client.HTTPSConnection(
        "127.0.0.1", port or deployment.server.port, timeout=20, context=context, source_address=(STRANGER, 0)
    )
    try:
        connection.request("POST", path, body, {"Content-Type": PROTOBUF_MEDIA_TYPE, **headers})
        answer = connection.getresponse()
        text = answer.read()[:80]
    except ssl.SSLError as error:
        return f"refused: {getattr(error, 'verify_message', '') or error.reason}"
    except OSError as error:
        return f"refused: {error}"
    finally:
        connection.close()
    return "let in" if answer.status < 300 else f"refused: {answer.status} {text.decode(errors='replace')}"
