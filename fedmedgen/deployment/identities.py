"""The two keys of each site: private halves in its kit alone, public ones in the project's memory too."""

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fedmedgen.deployment import certificates
from fedmedgen.errors import RunError, SettingsError
from fedmedgen.federation.secure_sum.keys import identity_of, public_of, write_identity

KEY, PUBLIC, IDENTITY = "site.key", "site.pub", "identity.key"
MEMORY = "project.json"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SiteKeys:
    """The public halves of a site's keys, and how they came: made now, in the kit here, or kept though it has left."""

    key: str  # in OpenSSH's form
    identity: str  # hexadecimal; empty: not known here
    how: Literal["made", "here", "kept"]


def keys_of(site: str, out: Path, identity: str) -> SiteKeys:
    """A site's keys; those that are missing are made, unless its kit has left: then the known ones stand.

    `identity` is the remembered one. Where the kit here has another, or none any more, the site has told of its own.
    """
    kit, at_server = out / "sites" / site, out / "server" / "sites" / f"{site}.pub"
    if at_server.is_file() and not (kit / PUBLIC).is_file():
        return SiteKeys(at_server.read_text(), identity, "kept")
    kit.mkdir(parents=True, exist_ok=True)
    made = not (kit / KEY).is_file()
    if made:
        key = certificates.new_key()
        (kit / PUBLIC).write_bytes(certificates.public_ssh(key))  # first: what is cut short here is made again
        certificates.write_key(kit / KEY, key, ssh=True)
    identity = _identity_of(kit / IDENTITY, "" if made else identity, site)
    public = (kit / PUBLIC).read_text()
    if not at_server.is_file() or at_server.read_text() != public:
        at_server.write_text(public)
    return SiteKeys(public, identity, "made" if made else "here")


def _identity_of(own: Path, known: str, site: str) -> str:
    """The public half of a site's identity: the remembered one before the kit's, a new one where neither is there."""
    found = public_of(identity_of(own)).hex() if own.is_file() else ""
    if known and found and found != known:
        logger.warning("%s is known by another identity than its kit here has: the known one is listed", site)
    return known or found or write_identity(own)


def register(known: Mapping[str, Mapping[str, str]], folder: Path) -> None:
    """The folder where `serve` looks for public keys, filled again where the server's kit has left."""
    if not folder.is_dir():
        folder.mkdir(parents=True)
        for site, keys in known.items():
            (folder / f"{site}.pub").write_text(keys["key"])


def as_yaml(keys: Mapping[str, SiteKeys]) -> str:
    """The sites as a policy lists them; one whose identity isn't known here is left out."""
    for site in (site for site, one in keys.items() if not one.identity):
        logger.warning("the identity of %s isn't known here, so no list of peers has it: ask its people", site)
    known = sorted((site, one.identity) for site, one in keys.items() if one.identity)
    return "\n".join(f"    - {{site: {site}, identity: {identity}}}" for site, identity in known)


def remembered(project: str, out: Path) -> dict[str, dict[str, str]]:
    """Public halves by site, as the last run left them.

    **Raises** `SettingsError` where the folder holds another project, `RunError` where its memory is damaged.
    """
    mark = out / MEMORY
    if not mark.is_file():
        return {}
    try:
        memory = json.loads(mark.read_text())
        name, sites = str(memory["name"]), dict(memory.get("sites", {}))
        known = {site: {"key": str(one["key"]), "identity": str(one["identity"])} for site, one in sites.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise RunError(
            f"{mark} is damaged ({error}): if {out} holds the project {project}, delete that file and provision again; "
            "sites keep their keys by server/sites"
        ) from error
    if name != project:
        raise SettingsError(f"{out} holds the project {name}; got {project}: name another folder by --out")
    return known


def remember(project: str, out: Path, sites: Mapping[str, Mapping[str, str]]) -> None:
    """Write the memory whole, or leave the old one."""
    draft = out / f"{MEMORY}.draft"
    with draft.open("w") as file:
        file.write(json.dumps({"name": project, "sites": sites}, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    draft.replace(out / MEMORY)


def public_halves(keys: Mapping[str, SiteKeys]) -> dict[str, dict[str, str]]:
    """What is remembered of the sites' keys."""
    return {site: {"key": one.key, "identity": one.identity} for site, one in keys.items()}
