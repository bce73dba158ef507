"""What must hold after any fault: no spend lost, none under-reported, nothing unlisted sent, nothing left hanging."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedmedgen.federation import records
from fedmedgen.privacy.ledger import load_key, spending_in
from server.run_store import run_name
from simulations.campaigns.deployment import Deployment

Line = Mapping[str, Any]  # of a site's security log
LISTED = {item.key for item in records.OUTGOING}


HOW = {
    "spends lost": "for each request, by its hash: no more different releases in the site's own log of what it handed "
    "to Flower than the ledger has reservations for that very request",
    "epsilon under-reported": "what the run says of a site's epsilon, beside the site's ledger",
    "unlisted data sent": "the words in that log are listed ones, and the size of each reply of an honest site in the "
    "server's table, measured there on what came, is that of a line of the log: not a byte more came under the study "
    "than the log tells, but for the one listed word `fault` where a full disk takes no line. The network is TLS and "
    "isn't read",
}


def wrongs(deployment: Deployment, study: str) -> dict[str, list[str]]:
    """Each kind of wrong with what was found; empty lists where all is well. `HOW` says what each count rests on."""
    found: dict[str, list[str]] = {kind: [] for kind in HOW}
    result, run = _result(deployment, study), run_name(deployment.settings(study))
    for site in deployment.sites:
        policy = deployment.policy(site)
        spending = spending_in(policy.ledger_path, key=load_key(policy.key_path), head_path=policy.head_path)
        sent = [line for line in deployment.security(site) if line["event"] == "sent"]
        lost = unpaid(sent, reserved(policy.ledger_path))
        found["spends lost"] += [f"{site}: {words}" for words in lost]
        rows = [] if site in deployment.rogues else [row for row in deployment.table(study) if row["site"] == site]
        found["unlisted data sent"] += [f"{site}: {words}" for words in unlisted(sent, rows)]
        said = result.get("sites", {}).get(site, {}).get("epsilon_run")
        paid = sum(plan.epsilon for plan in spending.plans.values() if plan.run == run)
        if said is not None and said < paid * 0.999:
            found["epsilon under-reported"].append(f"{site}: the run says {said:.4g}, its ledger {paid:.4g}")
    return found


def reserved(ledger: Path) -> Counter[str]:
    """How often each request is reserved, by the ledger's whole lines."""
    lines = [line for line in ledger.read_bytes().split(b"\n") if line.endswith(b"}") and b'"reserve"' in line]
    return Counter(str(json.loads(line)["request"]) for line in lines)


def unpaid(sent: Sequence[Line], paid: Mapping[str, int]) -> list[str]:
    """Requests that were answered by more different releases than were reserved for them, in words."""
    released: dict[str, set[str]] = {}
    for line in sent:
        if line["arrays"]:
            released.setdefault(line["request"], set()).add(line["sha256"])
    return [
        f"{len(different)} different releases to request {request[:12]}, {paid.get(request, 0)} reservations"
        for request, different in released.items()
        if len(different) > paid.get(request, 0)
    ]


def unlisted(sent: Sequence[Line], rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Words in the site's log that aren't listed, and replies at the server of a size that the log doesn't tell of."""
    found = [", ".join(sorted(odd)) for line in sent if (odd := set(line["words"]) - LISTED)]
    told = {_size(line) for line in sent} | {0}
    return found + [
        f"round {row['round']}: {row['bytes_up']} bytes came, and no line of the site's log is of that size"
        for row in rows
        if int(row["bytes_up"]) not in told and not _a_word_alone(row)
    ]


def _a_word_alone(row: Mapping[str, str]) -> bool:
    """Whether the site said that something is wrong with it, and not a word more: all that a full disk lets through."""
    return row["status"] == records.FAULT and int(row["bytes_up"]) == _size(
        {"words": {records.SITE: "", records.STATUS: records.FAULT}, "bytes": 0}
    )


def _size(line: Line) -> int:
    """A reply's size as the server measures it (`messages.size_of`)."""
    words = sum(len(key) + len(value) if isinstance(value, str) else 8 for key, value in line["words"].items())
    return int(line["bytes"]) + words


def rounds_sent(deployment: Deployment, site: str) -> Counter[str]:
    """How often each different release left a site."""
    return Counter(line["sha256"] for line in deployment.security(site) if line["event"] == "sent" and line["arrays"])


def _result(deployment: Deployment, study: str) -> dict[str, Any]:
    file = Path(deployment.study(study).out) / "result.json"
    return dict(json.loads(file.read_text())) if file.is_file() else {}
