"""The identity of each site for secure sums: a key in its kit, and everybody's public half for all policies."""

from pathlib import Path

from fedmedgen.deployment.project import Project
from fedmedgen.federation.secure_sum.keys import identity_of, public_of, write_identity

KEY = "identity.key"


def identities(project: Project, out: Path) -> dict[str, str]:
    """Public identities by site; keys that are missing are made."""
    found = {}
    for site in project.sites:
        key = out / "sites" / site.name / KEY
        key.parent.mkdir(parents=True, exist_ok=True)
        found[site.name] = public_of(identity_of(key)).hex() if key.is_file() else write_identity(key)
    return found


def as_yaml(peers: dict[str, str]) -> str:
    """The sites as a policy lists them."""
    return "\n".join(f"    - {{site: {site}, identity: {identity}}}" for site, identity in sorted(peers.items()))
