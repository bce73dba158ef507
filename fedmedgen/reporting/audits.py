"""The report's sections on what the audits found, and on whether the gate let the set out."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedmedgen.audit.identity import fingerprint
from fedmedgen.reporting.record import Record

log = logging.getLogger(__name__)

HEAD = [
    "Site",
    "Verdict",
    "Epsilon proved",
    "Claimed",
    "At most provable",
    "Best attack",
    "AUC",
    "Nearer to training: features, pixels",
]
NONE = "No audit of this run. Each site makes its own by: fedmedgen audit RUN --site NAME"


def audits(record: Record) -> dict[str, Any]:
    """A row a site, its sentences, and what the columns mean; `skipped` where there is no audit."""
    found = [known for file in sorted((record.folder / "audits").glob("*.json")) if (known := _read(file))]
    if not found:
        return {"skipped": NONE, "rows": [], "sites": []}
    return {
        "skipped": "",
        "head": HEAD,
        "rows": [_row(one, record.folder) for one in found],
        "sites": [{"name": one.get("site", ""), "words": one.get("verdict", {}).get("words", [])} for one in found],
    }


def release(record: Record) -> dict[str, Any]:
    """Whether the set may leave, and why not."""
    known = _read(record.folder / "release.json")
    if known is None:
        return {
            "words": "Nobody has asked for a release of this set. The command is: fedmedgen release RUN --out DIR",
            "reasons": [],
        }
    if known.get("granted"):
        where = f"The set was released on {known.get('at', '')} as {known.get('certificate', '')}"
        return {"words": f"{where}, signed with the key {known.get('key', '')}.", "reasons": []}
    reasons = [str(reason) for reason in known.get("reasons", [])]
    return {"words": f"Release was refused on {known.get('at', '')}, because:", "reasons": reasons}


def _row(one: Mapping[str, Any], run: Path) -> list[str]:
    canaries, claim = one.get("canaries", {}), one.get("claim", {}).get("epsilon")
    attacks = {
        name: row for name, row in one.get("membership", {}).items() if isinstance(row, Mapping) and "auc" in row
    }
    best = max(attacks, key=lambda name: float(attacks[name]["auc"]), default="")
    copies = one.get("copies", {})
    shares = [copies[kind]["nearer_to_train"] for kind in ("features", "pixels") if kind in copies]
    current = one.get("hashes") == fingerprint(run, str(one.get("site", "")))
    passed = "passed" if one.get("verdict", {}).get("passed") else "failed"
    return [
        str(one.get("site", "")),
        passed if current else "of another generator, set or ledger: audit again",
        _number(canaries.get("epsilon_lower_bound")),
        _number(claim),
        _number(canaries.get("ceiling")),
        best or "kept at the site" if one.get("membership") else "not measured",
        _number(attacks[best]["auc"]) if best else "",
        ", ".join(f"{share:.0%}" for share in shares),
    ]


def _number(value: Any) -> str:
    return "none" if value is None else f"{float(value):.2f}"


def _read(file: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log.warning("the report leaves out %s: %s", file.name, error)
        return None
    return found if isinstance(found, dict) else None
