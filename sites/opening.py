"""Which site a node is: from its own policy file, or, in a simulation, from its partition."""

import math
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from flwr.app import Context, RecordDict

from fedmedgen.data import holdout
from fedmedgen.data.cases import CaseSet
from fedmedgen.data.partition import held
from fedmedgen.deployment.guard import BUNDLE
from fedmedgen.errors import PolicyError
from fedmedgen.federation import local_round, plan
from fedmedgen.federation.messages import unpack_settings
from fedmedgen.federation.own_data import own_cases
from fedmedgen.federation.policy import SitePolicy
from fedmedgen.federation.secure_policy import SecureSumPolicy, simulated
from fedmedgen.privacy import kernels
from fedmedgen.settings import Settings
from sites.site import Site

POLICY = "policy"
PARTITION = "partition-id"
IN_PROCESS = "FEDMEDGEN_SIMULATION"


def open_site(context: Context, content: RecordDict) -> Site | None:
    """The node's site, or None for a node that has none.

    Only the node's own configuration decides: `policy` names the file of a real site; `partition-id` is what
    Flower's simulation gives its nodes.

    **Raises** `PolicyError` where the node has neither, or where nobody has checked the bundle that this code is from.
    """
    if POLICY in context.node_config:
        policy = SitePolicy.read(Path(str(context.node_config[POLICY])))
        if not in_simulation():
            require_checked_bundle(policy)
        torch.set_num_threads(policy.threads)
        kernels.keep_in(policy.kernel_cache)
        return Site(policy, partial(own_cases, policy))
    if PARTITION not in context.node_config or not in_simulation():
        raise PolicyError('expected policy="…" in the node\'s own configuration (--node-config); there is none')
    settings = unpack_settings(content)
    torch.set_num_threads(settings.runtime.threads)
    kernels.keep_in(settings.runtime.kernel_cache)
    parts = held(settings.data, settings.seed).parts
    number = int(context.node_config[PARTITION])
    if number >= len(parts):
        return None
    name = sorted(parts)[number]
    return Site(_simulated_policy(name, parts, settings), lambda _: parts[name])


def require_checked_bundle(policy: SitePolicy) -> None:
    """**Raises** `PolicyError` in a process that the site's guard didn't start: then any bundle would run."""
    if os.environ.get(BUNDLE) not in policy.bundles:
        raise PolicyError(
            "this process was not started by the site's guard, which checks the app bundle's hash against the policy: "
            "start the site by python -m fedmedgen.deployment.supernode POLICY"
        )


def in_simulation() -> bool:
    """Whether this process is a simulated node: of the in-process backend, or an actor of Flower's simulation.

    A SuperNode's own processes are neither, whatever its configuration says.
    """
    if os.environ.get(IN_PROCESS) == "1":
        return True
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def _simulated_policy(name: str, parts: Mapping[str, CaseSet], settings: Settings) -> SitePolicy:
    """The policy of a simulated site: its own file where there is one, else one as wide as the study asks."""
    root = Path(settings.ledger.root) if settings.ledger.root else Path(settings.out) / "sites"
    path = root / name / "policy.yaml"
    if path.is_file():
        return replace(SitePolicy.read(path), folder=str(path.parent))
    cases = parts[name]
    taking, _ = holdout.split(cases, settings.audit.holdout, holdout.simulated_key(settings.seed))
    policy = SitePolicy(
        site=name,
        folder=str(path.parent),
        patients_declared=plan.rounded_up(len(local_round.patients_of(plan.GENERATOR, taking))),
        labelled_declared=plan.rounded_up(len(local_round.patients_of(plan.SEGMENTER, taking))),
        audit_canaries=settings.audit.canaries,
        audit_kind=settings.audit.kind,
        audit_holdout=settings.audit.holdout,
        lifetime_epsilon=math.ceil(settings.privacy.epsilon * 1000) / 1000,
        lifetime_delta=settings.privacy.delta,
        smallest_noise_multiplier=0.2,
        largest_clip_norm=max(10.0, settings.privacy.clip_norm),
        largest_sample_rate=1.0,
        largest_steps=max(20_000, sum(stage.total_steps for stage in plan.stages(settings))),
        largest_rounds=max(500, sum(stage.rounds for stage in plan.stages(settings))),
        threads=settings.runtime.threads,
        unit="patient" if cases.unit == "patient" else "image",
        simulation=True,
        no_privacy_allowed=True,
        secure_sum=simulated(settings.seed, sorted(parts)) if settings.federation.shared else SecureSumPolicy(),
    )
    policy.write(path)
    return policy
