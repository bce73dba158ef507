"""One site's audit of a run: attacks on the generator, canaries, copies, and the verdict; where the patients are."""

import datetime
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from fedmedgen import __version__
from fedmedgen.audit import copies, membership, one_run
from fedmedgen.audit.identity import fingerprint
from fedmedgen.audit.verdict import leaving, verdict
from fedmedgen.data import holdout, partition, sources
from fedmedgen.data.cases import CaseSet
from fedmedgen.data.crafted import crafted
from fedmedgen.errors import RunError
from fedmedgen.federation.policy import SitePolicy
from fedmedgen.models.saving import load_generator
from fedmedgen.privacy import accountant
from fedmedgen.privacy.canary_record import CanaryRecord
from fedmedgen.privacy.ledger import load_key
from fedmedgen.settings import DataSettings, Settings

NO_HOLDOUT = "no patient was held out: set audit.holdout, at a real site audit_holdout in its policy, and run again"
NO_CANARIES = "no canary was planted: set audit.canaries, at a real site audit_canaries in its policy, and run again"


@dataclass(frozen=True)
class Audited:
    """What was found, and where it was written: `kept` stays at the site, `told` may leave it."""

    found: Mapping[str, Any]
    kept: Path
    told: Path


def audit(run: Path, site: str, *, real: Path | None = None) -> Audited:
    """Attack the run's generator from a site; RUN/sites/SITE/audit.json, and RUN/audits/SITE.json of what may leave.

    The cases are the simulated site's own; `real` names a folder or npz where they lie elsewhere.

    **Raises** `RunError` where the run or the site's folder isn't there, or the run has not finished.
    """
    settings, result = _read(run)
    folder = run / "sites" / site
    if site not in result.get("sites", {}) or not folder.is_dir():
        raise RunError(f"{run} has no site {site!r}; it has {', '.join(sorted(result.get('sites', {}))) or 'none'}")
    policy = SitePolicy.read(folder / "policy.yaml")
    members, others = _sides(settings, policy, site, real)
    generator = load_generator(run / "generator")
    known = result["sites"][site]
    found: dict[str, Any] = {
        "site": site,
        "run": result["run"],
        "claim": {"epsilon": known.get("epsilon_run"), "delta": known.get("delta"), "unit": known.get("unit")},
        "membership": _membership(generator, members, others, settings),
        "canaries": _canaries(CanaryRecord.of(folder, result["run"]), generator, settings),
        "copies": {"skipped": NO_HOLDOUT},
        "risk": _risk(known.get("epsilon_run"), known.get("delta")),
    }
    synthetic = _synthetic(run, settings)
    if len(others) and synthetic is not None:
        found["copies"] = copies.copies(synthetic, members, others, seed=settings.seed)
        copies.draw_nearest(synthetic, members, folder / "nearest.png")
    found["hashes"] = fingerprint(run, site)
    found["verdict"] = verdict(found, settings.gate)
    found["at"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    found["version"] = __version__
    told = leaving(found, public=bool(result.get("public_data")), gate=settings.gate)
    return Audited(found, _write(folder / "audit.json", found), _write(run / "audits" / f"{site}.json", told))


def _read(run: Path) -> tuple[Settings, dict[str, Any]]:
    try:
        settings = Settings.from_mapping(yaml.safe_load((run / "settings.yaml").read_text(encoding="utf-8")))
        result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise RunError(f"expected a finished run in {run}, with settings.yaml and result.json: {error}") from error
    if result.get("status") != "completed":
        raise RunError(f"the run in {run} has status {result.get('status')!r}: only a completed one can be audited")
    return settings, result


def _sides(settings: Settings, policy: SitePolicy, site: str, real: Path | None) -> tuple[CaseSet, CaseSet]:
    """The patients who took part, and those held out, by the very rule that the site followed."""
    if real is not None:
        data = DataSettings(
            root=str(real), columns=settings.data.columns, classes=settings.data.classes, min_patients=1,
            mask_classes=settings.data.mask_classes, size=settings.data.size, fit=settings.data.fit, test_share=0,
        )  # fmt: skip
        cases = sources.load(data, seed=settings.seed)
    else:
        cases = partition.held(settings.data, settings.seed).parts[site]
    seeded = policy.simulation
    key = holdout.simulated_key(settings.seed) if seeded else load_key(policy.key_path)
    return holdout.split(cases, policy.audit_holdout, key)


def _membership(generator: Any, members: CaseSet, others: CaseSet, settings: Settings) -> dict[str, Any]:
    if not len(others):
        return {"skipped": NO_HOLDOUT}
    draw = np.random.default_rng(settings.seed)
    sides = [_at_most(cases, settings.audit.cases, draw) for cases in (members, others)]
    mine, theirs = (membership.attacks(generator, cases, seed=settings.seed) for cases in sides)
    return membership.summary(mine, theirs, seed=settings.seed)


def _canaries(record: CanaryRecord, generator: Any, settings: Settings) -> dict[str, Any]:
    if not record.path.is_file():
        return {"skipped": NO_CANARIES}
    known = record.read()
    scores = record.total()
    if known["kind"] == "images":
        made = crafted(
            known["count"], seed=known["seed"], num_classes=len(settings.data.classes), size=settings.data.size
        )
        cases = CaseSet(tuple(made), settings.data.classes)
        by_attack = membership.attacks(generator, cases, seed=settings.seed)
        scores = by_attack["loss" if "loss" in by_attack else "likelihood"]
    confidence = settings.audit.confidence
    delta = settings.privacy.delta if settings.private else 0.0
    found = one_run.bound(scores, np.array(known["included"], bool), confidence=confidence, delta=delta)
    return {
        "count": known["count"],
        "kind": known["kind"],
        "epsilon_lower_bound": found.epsilon,
        "confidence": confidence,
        "ceiling": found.ceiling,
        "guesses": found.guesses,
        "correct": found.correct,
    }


def _risk(epsilon: float | None, delta: float | None) -> dict[str, Any]:
    """What the claim allows an attacker who accepts 1 % false alarms, whatever the mechanism."""
    if epsilon is None or delta is None:
        return {"words": "nothing bounds what an attacker finds: the run has no privacy"}
    worst = accountant.worst_true_positive_rate(epsilon, delta)
    return {"tpr_at_1pct_fpr": worst, "words": accountant.risk_words(epsilon, delta)}


def _synthetic(run: Path, settings: Settings) -> CaseSet | None:
    if not (run / "synthetic" / "labels.csv").is_file():
        return None
    data = DataSettings(
        root=str(run / "synthetic"), classes=settings.data.classes, mask_classes=settings.data.mask_classes,
        size=settings.data.size, min_patients=1,
    )  # fmt: skip
    return sources.load(data, seed=settings.seed)


def _at_most(cases: CaseSet, count: int, draw: np.random.Generator) -> CaseSet:
    return cases.with_cases([cases.cases[place] for place in draw.permutation(len(cases))[:count]])


def _write(path: Path, found: Mapping[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return path
