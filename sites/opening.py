"""Which site a node is: from its own policy file, or, in a simulation, from its partition."""

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch
from flwr.app import Context, RecordDict

from fedmedgen.data import sources
from fedmedgen.data.cases import CaseSet
from fedmedgen.data.partition import partition
from fedmedgen.errors import PolicyError
from fedmedgen.federation import local_round, plan
from fedmedgen.federation.messages import unpack_settings
from fedmedgen.federation.policy import SitePolicy
from fedmedgen.settings import DataSettings, Settings
from sites.site import Site, with_data_of

POLICY = "policy"
PARTITION = "partition-id"


def open_site(context: Context, content: RecordDict) -> Site | None:
    """The node's site, or None for a node that has none.

    Only the node's own configuration decides: `policy` names the file of a real site; `partition-id` is what
    Flower's simulation gives its nodes.

    **Raises** `PolicyError` where the node has neither.
    """
    settings = unpack_settings(content)
    torch.set_num_threads(settings.runtime.threads)
    if POLICY in context.node_config:
        policy = SitePolicy.read(Path(str(context.node_config[POLICY])))
        return Site(policy, lambda asked: _own_cases(with_data_of(policy, asked).data, asked.seed))
    if PARTITION not in context.node_config:
        raise PolicyError('expected policy="…" in the node\'s own configuration (--node-config); there is none')
    parts = site_parts(settings.data, settings.seed)
    number = int(context.node_config[PARTITION])
    if number >= len(parts):
        return None
    name = sorted(parts)[number]
    return Site(_simulated_policy(name, parts[name], settings), lambda _: parts[name])


@lru_cache(maxsize=2)
def site_parts(data: DataSettings, seed: int) -> Mapping[str, CaseSet]:
    """The training cases of every simulated site, read once a process."""
    parts = partition(sources.load(data, seed=seed), data, seed=seed)
    return {name: _capped(cases, data.max_patients) for name, cases in parts.items()}


@lru_cache(maxsize=1)
def _own_cases(data: DataSettings, seed: int) -> CaseSet:
    return sources.load(data, seed=seed).of_split("train")


def _capped(cases: CaseSet, most: int) -> CaseSet:
    if not most:
        return cases
    kept = list(cases.by_patient().values())[:most]
    return cases.with_cases([case for patient in kept for case in patient])


def _simulated_policy(name: str, cases: CaseSet, settings: Settings) -> SitePolicy:
    """The policy of a simulated site: its own file where there is one, else one as wide as the study asks."""
    root = Path(settings.ledger.root) if settings.ledger.root else Path(settings.out) / "sites"
    path = root / name / "policy.yaml"
    if path.is_file():
        return replace(SitePolicy.read(path), folder=str(path.parent))
    policy = SitePolicy(
        site=name,
        folder=str(path.parent),
        patients_declared=plan.rounded_up(len(local_round.patients_of(plan.GENERATOR, cases))),
        labelled_declared=plan.rounded_up(len(local_round.patients_of(plan.SEGMENTER, cases))),
        lifetime_epsilon=math.ceil(settings.privacy.epsilon * 1000) / 1000,
        lifetime_delta=settings.privacy.delta,
        smallest_noise_multiplier=0.2,
        unit="patient" if cases.unit == "patient" else "image",
        simulation=True,
        no_privacy_allowed=True,
    )
    policy.write(path)
    return policy
