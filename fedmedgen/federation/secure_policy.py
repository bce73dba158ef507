"""What a site's policy says of secure sums: whose keys it hides behind, and what may be claimed of it."""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from fedmedgen.errors import PolicyError
from fedmedgen.federation import records
from fedmedgen.federation.secure_sum.keys import public_of
from fedmedgen.federation.secure_sum.terms import Terms
from fedmedgen.schema import require

SIMULATED_ALONE = 1e6  # on public data nobody is promised anything


@dataclass(frozen=True, kw_only=True)
class Peer:
    """Another site, known by its identity: 64 hexadecimal digits, as its people have told it, not as a server says."""

    site: str
    identity: str

    def __post_init__(self) -> None:
        require(bool(re.fullmatch(records.NAME_OF_A_SITE, self.site)), "peers.site", self.site, "the name of a site")
        require(bool(re.fullmatch("[0-9a-f]{64}", self.identity)), "peers.identity", self.identity, "64 hex digits")


@dataclass(frozen=True, kw_only=True)
class SecureSumPolicy:
    """Sites that this one may share its noise with, and the limits of what it then relies on.

    A secure sum claims twice: epsilon against the server and the colluders it allows for, which the policy's lifetime
    budget caps, and epsilon where all others collude and the site's own part of the noise is left, capped here.
    """

    lifetime_epsilon_alone: float = 0.0  # 0: no secure sums
    smallest_colluders: int = 1
    unmasked_allowed: bool = False  # a sum whose server sees this site's vector, under all of the noise
    identity: str = ""  # the file of this site's own identity key
    peers: tuple[Peer, ...] = ()

    def __post_init__(self) -> None:
        alone = self.lifetime_epsilon_alone
        require(alone >= 0, "secure_sum.lifetime_epsilon_alone", alone, "at least 0")
        require(self.smallest_colluders >= 1, "secure_sum.smallest_colluders", self.smallest_colluders, "at least 1")
        names, keys = [p.site for p in self.peers], [p.identity for p in self.peers]
        require(len(set(names)) == len(names) == len(set(keys)), "secure_sum.peers", names, "each once, by its own key")

    @property
    def pinned(self) -> dict[str, bytes]:
        """Public identities by site, this one's among them."""
        return {peer.site: bytes.fromhex(peer.identity) for peer in self.peers}


def check_terms(policy: SecureSumPolicy, site: str, terms: Terms) -> None:
    """Refuse a sum among others than the policy names, or one that counts on more honesty than it allows.

    **Raises** `PolicyError`.
    """
    if not policy.lifetime_epsilon_alone:
        raise PolicyError(
            "the request is for a secure sum; secure_sum.lifetime_epsilon_alone: 0 in this policy forbids it"
        )
    if unknown := [name for name in terms.sites if name not in policy.pinned]:
        raise PolicyError(f"the sum is with {unknown[0]}, whose identity this site's policy doesn't name")
    if site not in terms.sites:
        raise PolicyError(f"the sum is of {', '.join(terms.sites)}; {site} isn't among them")
    if not (terms.masked or policy.unmasked_allowed):
        raise PolicyError("the sum is without masks; secure_sum.unmasked_allowed: false in this policy forbids it")
    if terms.colluders < policy.smallest_colluders:
        raise PolicyError(f"the sum allows for {terms.colluders} colluders; the policy for {policy.smallest_colluders}")


def simulated_identity(seed: int, site: str) -> bytes:
    """The identity of a simulated site, which every node can work out."""
    return hashlib.sha256(f"fedmedgen simulated identity/{seed}/{site}".encode()).digest()


def simulated(seed: int, sites: Iterable[str]) -> SecureSumPolicy:
    """The policy of a simulated site among others."""
    peers = (Peer(site=name, identity=public_of(simulated_identity(seed, name)).hex()) for name in sites)
    return SecureSumPolicy(lifetime_epsilon_alone=SIMULATED_ALONE, unmasked_allowed=True, peers=tuple(peers))
