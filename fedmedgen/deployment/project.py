"""What people write: a project of a server and its sites, and the settings of each one's kit."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from fedmedgen.errors import SettingsError
from fedmedgen.federation.records import NAME_OF_A_SITE
from fedmedgen.schema import from_mapping, require

NAME_OF_A_HOST = r"[A-Za-z0-9]([A-Za-z0-9.:-]{0,252}[A-Za-z0-9])?"
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ServerProject:
    """How sites reach the server."""

    names: tuple[str, ...]  # host names and addresses in its certificate; sites are told the first
    port: int = 8443
    days: int = 365  # that its certificate is good for

    def __post_init__(self) -> None:
        require(bool(self.names), "server.names", self.names, "at least one host name or address")
        odd = [name for name in self.names if not re.fullmatch(NAME_OF_A_HOST, name)]
        require(not odd, "server.names", odd, "host names or addresses, without a scheme or a port")
        _port("server.port", self.port)
        require(1 <= self.days <= 825, "server.days", self.days, "from 1 to 825")


@dataclass(frozen=True, kw_only=True)
class SiteProject:
    """A hospital: what the project knows of its policy. What it leaves out, the hospital fills in."""

    name: str
    patients_declared: int = 0
    labelled_declared: int = 0
    lifetime_epsilon: float = 10.0
    data_layout: Literal["images", "folders", "dicom", "npz"] = "dicom"
    data_root: str = ""

    def __post_init__(self) -> None:
        require(bool(re.fullmatch(NAME_OF_A_SITE, self.name)), "sites.name", self.name, f"of the form {NAME_OF_A_SITE}")
        require(self.patients_declared >= 0, "sites.patients_declared", self.patients_declared, "at least 0")
        require(self.lifetime_epsilon > 0, "sites.lifetime_epsilon", self.lifetime_epsilon, "above 0")


@dataclass(frozen=True, kw_only=True)
class Project:
    """A federation: a server and its sites. A site that leaves the list is revoked."""

    name: str
    server: ServerProject
    sites: tuple[SiteProject, ...]

    def __post_init__(self) -> None:
        require(bool(re.fullmatch(NAME_OF_A_SITE, self.name)), "name", self.name, f"of the form {NAME_OF_A_SITE}")
        names = [site.name for site in self.sites]
        require(len(set(names)) == len(names) > 0, "sites", names, "one or more sites, each with a name of its own")


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """SERVER.yaml: what `serve` and `submit` read. Relative paths are beside the file."""

    host: str = "0.0.0.0"
    port: int = 8443
    certificate: str = "server.crt"
    key: str = "server.key"
    ca: str = "ca.crt"
    sites: str = "sites"  # a public key a site, NAME.pub: add or remove one to add or revoke the site
    app: str = "app"  # the app whose bundle sites have in their policies
    state: str = "state"  # what a restart needs, and logs
    runs: str = "runs"
    health_port: int = 8444  # on this machine alone
    restart_seconds: float = 1.0  # before the first restart; doubled up to restart_longest
    restart_longest: float = 60.0
    attempts: int = 5  # to go on with a study that failed without getting a round further
    attempt_seconds: float = 10.0  # before the second; doubled each time

    def __post_init__(self) -> None:
        _port("port", self.port)
        _port("health_port", self.health_port)
        _waits(self.restart_seconds, self.restart_longest)
        require(self.attempts >= 1, "attempts", self.attempts, "at least 1")
        require(self.attempt_seconds >= 0, "attempt_seconds", self.attempt_seconds, "at least 0")

    @classmethod
    def read(cls, path: Path) -> "ServerConfig":
        """**Raises** `SettingsError` where the file is none or holds what it shouldn't."""
        return _beside(read_settings(cls, path), path, "certificate", "key", "ca", "sites", "app", "state", "runs")


@dataclass(frozen=True, kw_only=True)
class SiteConfig:
    """SITE.yaml: what `join` and `preflight` read. Relative paths are beside the file."""

    site: str
    server: str  # host:port
    ca: str = "ca.crt"
    key: str = "site.key"
    policy: str = "policy.yaml"
    state: str = "state"  # logs
    health_port: int = 8445  # on this machine alone
    restart_seconds: float = 1.0
    restart_longest: float = 60.0

    def __post_init__(self) -> None:
        require(bool(re.fullmatch(NAME_OF_A_HOST + r":\d{1,5}", self.server)), "server", self.server, "HOST:PORT")
        _port("server", int(self.server.rpartition(":")[2]))
        _port("health_port", self.health_port)
        _waits(self.restart_seconds, self.restart_longest)

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.server.rpartition(":")
        return host, int(port)

    @classmethod
    def read(cls, path: Path) -> "SiteConfig":
        """**Raises** `SettingsError` where the file is none or holds what it shouldn't."""
        return _beside(read_settings(cls, path), path, "ca", "key", "policy", "state")


@dataclass(frozen=True, kw_only=True)
class StudyFile:
    """STUDY.yaml: a study to run on a deployment, as the words that `simulate` takes."""

    name: str
    overrides: tuple[str, ...] = ()
    server: str = "server.yaml"

    def __post_init__(self) -> None:
        require(bool(re.fullmatch(NAME_OF_A_SITE, self.name)), "name", self.name, f"of the form {NAME_OF_A_SITE}")

    @classmethod
    def read(cls, path: Path) -> "StudyFile":
        """**Raises** `SettingsError` where the file is none or holds what it shouldn't."""
        return _beside(read_settings(cls, path), path, "server")


def read_settings(cls: type[T], path: Path) -> T:
    """A file's settings.

    **Raises** `SettingsError` where the file is none or holds what it shouldn't.
    """
    try:
        mapping: Mapping[str, Any] = yaml.safe_load(path.read_text()) or {}
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        raise SettingsError(f"expected a YAML file of settings at {path}: {error}") from error
    try:
        return from_mapping(cls, mapping)
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from error


def _beside(config: T, path: Path, *names: str) -> T:
    folder = path.resolve().parent
    return replace(config, **{name: str(folder / getattr(config, name)) for name in names})  # type: ignore[type-var]


def _port(name: str, port: int) -> None:
    require(1 <= port <= 65535, name, port, "a port from 1 to 65535")


def _waits(first: float, longest: float) -> None:
    require(0 < first <= longest, "restart_seconds", first, f"above 0 and at most restart_longest ({longest:g})")
