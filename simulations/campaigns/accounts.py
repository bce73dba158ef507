"""What must hold after any fault: no spend lost, none under-reported, nothing unlisted sent, nothing left hanging."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from fedmedgen.federation import records
from fedmedgen.privacy.ledger import load_key, spending_in
from server.run_store import run_name
from simulations.campaigns.deployment import Deployment

LISTED = {item.key for item in records.OUTGOING}


def wrongs(deployment: Deployment, study: str) -> dict[str, list[str]]:
    """Each kind of wrong with what was found; empty lists where all is well."""
    found: dict[str, list[str]] = {"spends lost": [], "epsilon under-reported": [], "unlisted data sent": []}
    result, run = _result(deployment, study), run_name(deployment.settings(study))
    for site in deployment.sites:
        policy = deployment.policy(site)
        spending = spending_in(policy.ledger_path, key=load_key(policy.key_path), head_path=policy.head_path)
        sent = [line for line in deployment.security(site) if line["event"] == "sent"]
        released = {line["sha256"] for line in sent if line["arrays"]}
        steps = sum(sum(plan.reserved.values()) for plan in spending.plans.values())
        if len(released) > steps:  # a step a round here
            found["spends lost"].append(f"{site}: {len(released)} different releases, {steps} steps in its ledger")
        for line in sent:
            if odd := set(line["words"]) - LISTED:
                found["unlisted data sent"].append(f"{site}: {', '.join(sorted(odd))}")
        said = result.get("sites", {}).get(site, {}).get("epsilon_run")
        paid = sum(plan.epsilon for plan in spending.plans.values() if plan.run == run)
        if said is not None and said < paid * 0.999:
            found["epsilon under-reported"].append(f"{site}: the run says {said:.4g}, its ledger {paid:.4g}")
    return found


def rounds_sent(deployment: Deployment, site: str) -> Counter[str]:
    """How often each different release left a site."""
    return Counter(line["sha256"] for line in deployment.security(site) if line["event"] == "sent" and line["arrays"])


def _result(deployment: Deployment, study: str) -> dict[str, Any]:
    file = Path(deployment.study(study).out) / "result.json"
    return dict(json.loads(file.read_text())) if file.is_file() else {}
