"""The certificate: everything that was claimed, measured, asked and hashed, as one mapping that is signed."""

import datetime
import hashlib
import json
import math
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedmedgen import __version__
from fedmedgen.audit.identity import file_hash, fingerprint, folder_hash
from fedmedgen.privacy.chain import canonical
from fedmedgen.release import numbers, spent
from fedmedgen.release.evidence import Evidence
from fedmedgen.release.gate import Judgement
from fedmedgen.release.signing import ProjectKey

FORMAT = 1
NAME, PAGE, SIGNATURE = "certificate.json", "certificate.html", "certificate.sig"
SITE_FACTS = ("patients_declared", "labelled_declared", "epsilon_run", "delta", "unit", "rounds")


def draft(evidence: Evidence, judgement: Judgement, key: ProjectKey) -> dict[str, Any]:
    """The certificate but for the hashes of the files that it goes with."""
    promise, gate = numbers.claim(evidence), evidence.settings.to_mapping()["gate"]
    content = {
        "format": FORMAT,
        "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "study": evidence.settings.study,
        "run": evidence.name,
        "set": _set(evidence),
        "simulation": bool(evidence.result.get("simulation")),
        "public_data": bool(evidence.result.get("public_data")),
        "claim": promise,
        "privacy": dict(evidence.result["privacy"]),
        "sites": {site: _site(evidence, site) for site in evidence.sites},
        "audits": {site: dict(found) for site, found in evidence.audits.items()},
        "evaluation": dict(evidence.metrics),
        "thresholds": gate,
        "numbers": {
            "privacy": numbers.privacy_numbers(promise, evidence.audits, gate),
            "worth": numbers.worth_numbers(evidence),
        },
        "checks": [{"question": check.question, "reasons": list(check.reasons)} for check in judgement.checks],
        "hashes": _hashes(evidence),
        "versions": {
            "fedmedgen": __version__,
            "run": evidence.result.get("version", ""),
            "commit": evidence.result.get("commit", ""),
            "machine": evidence.result.get("machine", ""),
            "python": platform.python_version(),
        },
        "key": {"algorithm": "Ed25519", "public": key.public, "fingerprint": key.fingerprint},
    }
    return dict(_finite(content))


def written(content: Mapping[str, Any]) -> str:
    """The one way of writing a certificate, so that the file's bytes follow from what is signed."""
    return json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n"


def signed_bytes(content: Mapping[str, Any]) -> bytes:
    """What the signature is over."""
    return canonical(content)


def files_of(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a release but the certificate itself and its signature, by relative name."""
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: file_hash(path) for name, path in found.items() if name not in (NAME, SIGNATURE)}


def _set(evidence: Evidence) -> dict[str, Any]:
    sheet, data = evidence.sheet, evidence.settings.data
    return {
        "cases": sheet.get("cases"),
        "classes": list(sheet.get("classes") or ()),
        "mask_classes": list(sheet.get("mask_classes") or ()),
        "masks": (evidence.run / "synthetic" / "masks").is_dir(),
        "public_masks": evidence.settings.public_masks,
        "size": list(data.size),
    }


def _site(evidence: Evidence, site: str) -> dict[str, Any]:
    known = spent.account(evidence, site)
    return {name: evidence.sites[site].get(name) for name in SITE_FACTS} | {
        "epsilon_recomputed": known.epsilon_spent,
        "epsilon_lifetime": known.spending.epsilon,
        "delta_lifetime": known.spending.delta,
        "limit": vars(known.limit),
        "plans": [plan.digest for plan in known.plans],
        "ledger_lines": known.spending.lines,
        "macs_checked": known.macs_checked,
        "hashes": fingerprint(evidence.run, site),
    }


def _hashes(evidence: Evidence) -> dict[str, str]:
    run = evidence.run
    files = {name: file_hash(run / name) for name in ("settings.yaml", "result.json", "metrics.json", "rounds.csv")}
    return files | {name: folder_hash(run / name) for name in ("generator", "synthetic")}


def certificate_hash(content: Mapping[str, Any]) -> str:
    """A short name for one certificate."""
    return hashlib.sha256(signed_bytes(content)).hexdigest()


def _finite(value: Any) -> Any:
    """Numbers that JSON has no word for become null."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
