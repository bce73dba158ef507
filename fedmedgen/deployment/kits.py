"""A project's folder: the authority, the server's kit and one kit a site; made once, then kept up to date."""

import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import ROUND_FLOOR, Context, Decimal
from hashlib import sha256
from pathlib import Path
from string import Template
from typing import Any

import yaml

import fedmedgen
from fedmedgen.deployment import certificates, identities, templates
from fedmedgen.deployment.project import Project, ServerConfig, SiteConfig, SiteProject
from fedmedgen.errors import RunError

PLACE_OF_DATA = "/path/to/the/radiographs"
CHECKOUT = Path(fedmedgen.__file__).resolve().parents[1]
NO_CODE = (".git", ".venv", "venv", "runs", ".*_cache", ".hypothesis", "__pycache__")  # Flower would walk for minutes


@dataclass
class Provisioned:
    """What was done, in words for a person."""

    folder: Path
    bundle: str = ""
    made: list[str] = field(default_factory=list)
    renewed: list[str] = field(default_factory=list)
    revoked: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)  # sites whose kit has left this folder


def provision(project: Project, out: Path, *, renew: bool = False, new_app: bool = False) -> Provisioned:
    """Write what is missing, renew what ends soon, revoke sites that left the project; keys and policies stay.

    **Raises** `SettingsError` where the folder holds another project, `RunError` where a part of it is damaged or the
    authority is needed and elsewhere.
    """
    done, server = Provisioned(out), out / "server"
    out.mkdir(parents=True, exist_ok=True)
    known = identities.remembered(project.name, out)
    identities.remember(project.name, out, known)
    by = _authority(project, out, done, new=not known)
    identities.register(known, server / "sites")
    done.bundle = _app(server / "app", done, anew=new_app)
    ends = _server_certificate(project, server, by, done, renew=renew)
    _server_texts(project, server, done.bundle, ends, by[1].not_valid_after_utc.date())
    keys = {
        site.name: identities.keys_of(site.name, out, known.get(site.name, {}).get("identity", ""))
        for site in project.sites
    }
    identities.remember(project.name, out, identities.public_halves(keys))
    done.made += [f"the kit of {name}" for name, one in keys.items() if one.how == "made"]
    done.kept += [name for name, one in keys.items() if one.how == "kept"]
    peers = identities.as_yaml(keys)
    for site in project.sites:
        if site.name not in done.kept:
            _site(project, site, out, done.bundle, peers)
    _revoke(project, server, done)
    return done


def digest_of(app: Path) -> str:
    """The SHA-256 of the bundle that Flower builds from an app's folder."""
    with tempfile.TemporaryDirectory() as folder:
        return sha256(_built(app, Path(folder)).read_bytes()).hexdigest()


def _authority(project: Project, out: Path, done: Provisioned, *, new: bool) -> tuple[certificates.Key | None, Any]:
    """The authority's key and certificate; no key where it is kept elsewhere."""
    folder, known = out / "authority", out / "server" / "ca.crt"
    if not (folder / "ca.key").is_file():
        if known.is_file():
            return None, certificates.read_certificate(known)
        if not new:
            raise RunError(f"expected the project's authority at {folder}; there is none: bring it back for this run")
        folder.mkdir(mode=0o700, exist_ok=True)
        key = certificates.new_key()
        certificates.write_certificate(folder / "ca.crt", certificates.authority(key, project.name))
        certificates.write_key(folder / "ca.key", key)
        done.made.append("the authority")
    return certificates.read_key(folder / "ca.key"), certificates.read_certificate(folder / "ca.crt")


def _server_certificate(
    project: Project, server: Path, by: tuple[certificates.Key | None, Any], done: Provisioned, *, renew: bool
) -> Any:
    """The day the server's certificate ends, after renewing it where it is due or its names have changed."""
    certificates.write_certificate(server / "ca.crt", by[1])
    known = server / "server.crt"
    if known.is_file():
        old = certificates.read_certificate(known)
        due = certificates.days_left(old) < certificates.RENEW_DAYS or not _fits(server / "server.key", old)
        if not (due or renew or set(project.server.names) - certificates.names_of(old)):
            return old.not_valid_after_utc.date()
        done.renewed.append("the server's certificate")
    else:
        done.made.append("the server's kit")
    if by[0] is None:
        raise RunError("the server's certificate must be signed anew: bring authority/ca.key back for this run")
    key, fresh = certificates.new_key(), (server / "server.key.new", server / "server.crt.new")
    new = certificates.for_server(key, project.server.names, project.server.days, (by[0], by[1]))
    fresh[0].unlink(missing_ok=True)  # a crash left it
    certificates.write_key(fresh[0], key)
    certificates.write_certificate(fresh[1], new)
    for path in fresh:
        path.replace(path.with_suffix(""))
    return new.not_valid_after_utc.date()


def _fits(path: Path, certificate: Any) -> bool:
    """Whether a private key is the certificate's: a crash between the two files leaves one that isn't."""
    known: bool = path.is_file() and certificates.read_key(path).public_key() == certificate.public_key()
    return known


def _server_texts(project: Project, server: Path, bundle: str, ends: Any, authority_ends: Any) -> None:
    config = {"host": ServerConfig.host, "port": project.server.port}
    _write_new(server / "server.yaml", yaml.safe_dump(config, sort_keys=False))
    _write_new(server / "study.yaml", _filled(templates.STUDY, sites=len(project.sites)))
    (server / "README.md").write_text(
        _filled(
            templates.SERVER_README, project=project.name, port=project.server.port, ends=ends, bundle=bundle,
            renew=certificates.RENEW_DAYS, authority_ends=authority_ends,
            health=_filled(templates.HEALTH, port=ServerConfig.health_port),
        )
    )  # fmt: skip
    _starters(server, project.name, "serve server.yaml", "server", [f"{project.server.port}:{project.server.port}"])


def _site(project: Project, site: SiteProject, out: Path, bundle: str, peers: str) -> None:
    kit = out / "sites" / site.name
    shutil.copy(out / "server" / "ca.crt", kit / "ca.crt")
    server = f"{project.server.names[0]}:{project.server.port}"
    _write_new(kit / "site.yaml", yaml.safe_dump({"site": site.name, "server": server}, sort_keys=False))
    declared = site.patients_declared
    policy = _filled(
        templates.POLICY, site=site.name, data_root=site.data_root or PLACE_OF_DATA, data_layout=site.data_layout,
        patients_declared=declared or "", labelled_declared=site.labelled_declared,
        lifetime_epsilon=f"{site.lifetime_epsilon:g}", bundle=bundle,
        lifetime_delta=_largest_delta(declared) if declared else "", peers=peers,
    )  # fmt: skip
    _write_new(kit / "policy.yaml", policy)
    (kit / "peers.yaml").write_text(f"{peers}\n")
    readme = _filled(
        templates.SITE_README, site=site.name, project=project.name, server=server,
        health_port=SiteConfig.health_port, health=_filled(templates.HEALTH, port=SiteConfig.health_port),
    )  # fmt: skip
    (kit / "README.md").write_text(readme)
    _starters(kit, project.name, "join site.yaml", "site", [], site.data_root)


def _largest_delta(declared: int) -> str:
    """One tenth of 1 / patients_declared in six digits, rounded down: a policy refuses any more."""
    return f"{Context(prec=6, rounding=ROUND_FLOOR).divide(Decimal(1), Decimal(10 * declared)):f}"


def _revoke(project: Project, server: Path, done: Provisioned) -> None:
    """A public key whose site left the project goes where `serve` doesn't look."""
    names = {site.name for site in project.sites}
    for key in sorted((server / "sites").glob("*.pub")):
        if key.stem not in names:
            (server / "revoked").mkdir(exist_ok=True)
            key.rename(server / "revoked" / key.name)
            done.revoked.append(key.stem)


def _starters(kit: Path, project: str, command: str, what: str, ports: Sequence[str], data_root: str = "") -> None:
    start = kit / "start.sh"
    start.write_text(_filled(templates.START, command=command))
    start.chmod(0o755)
    folder = "server" if what == "server" else f"sites/{kit.name}"
    head = "" if what == "server" else templates.UNIT_HEAD
    unit = _filled(templates.UNIT, what=what, project=project, folder=folder, command=command, head=head)
    (kit / f"fedmedgen-{what}.service").write_text(unit)
    words = ", ".join(json.dumps(word) for word in command.split())
    more = f"    ports: {json.dumps(list(ports))}\n" if ports else _volumes(data_root)
    version = fedmedgen.__version__
    _write_new(kit / "compose.yaml", _filled(templates.COMPOSE, service=what, words=words, version=version, more=more))


def _volumes(data_root: str) -> str:
    """The radiographs, read alone, where the policy looks for them; what is relative lies beside the policy."""
    root = data_root or PLACE_OF_DATA
    here, inside = (root, root) if root.startswith("/") else (f"./{root}", f"/kit/{root}")
    return _filled(templates.VOLUMES, data=json.dumps(f"{here}:{inside}:ro".replace("$", "$$")))


def _app(app: Path, done: Provisioned, *, anew: bool) -> str:
    """The app's folder as Flower bundles it, and the bundle's hash; an old one stays, since sites have its hash."""
    if anew and app.is_dir():
        shutil.rmtree(app)
        done.renewed.append("the app")
    if app.is_dir():
        return digest_of(app)
    if not (CHECKOUT / "sites" / "app.py").is_file():
        raise RunError(
            "the code that sites run isn't part of this installation: clone the fedmedgen repository, provision there"
        )
    with tempfile.TemporaryDirectory() as folder:
        code = shutil.copytree(CHECKOUT, Path(folder) / "app", ignore=shutil.ignore_patterns(*NO_CODE))
        bundle = _built(code, Path(folder))
        with zipfile.ZipFile(bundle) as packed:
            packed.extractall(app)
        return sha256(bundle.read_bytes()).hexdigest()


def _built(app: Path, folder: Path) -> Path:
    """The bundle that Flower builds from an app."""
    flwr = str(Path(sys.executable).parent / "flwr")
    environment = {"PATH": str(Path(sys.executable).parent), "FLWR_HOME": str(folder / "home"), "HOME": str(folder),
                   "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}  # fmt: skip
    done = subprocess.run(
        [flwr, "build", "--app", str(app.resolve())],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    built = list(folder.glob("*.fab"))
    if done.returncode or len(built) != 1:
        raise RunError(f"Flower could not bundle {app}: {done.stdout[-1000:]}{done.stderr[-1000:]}")
    return built[0]


def _write_new(path: Path, text: str) -> None:
    """Leave a file alone that a person may have edited."""
    if not path.exists():
        path.write_text(text)


def _filled(template: str, **words: object) -> str:
    return Template(template).substitute({key: str(value) for key, value in words.items()})
