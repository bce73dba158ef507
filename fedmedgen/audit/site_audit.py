"""One site's audit of a run: attacks on the generator, canaries, copies, and the verdict; where the patients are."""

import datetime
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
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
from fedmedgen.federation.holdout_record import HoldoutRecord
from fedmedgen.federation.own_data import own_cases
from fedmedgen.federation.policy import SitePolicy
from fedmedgen.gate_settings import AuditSettings, GateSettings
from fedmedgen.models.saving import load_generator
from fedmedgen.privacy import accountant
from fedmedgen.privacy.budget import Plan
from fedmedgen.privacy.canary_record import CanaryRecord
from fedmedgen.privacy.ledger import load_key, spending_in
from fedmedgen.settings import DataSettings, Settings

NO_HOLDOUT = "no patient was held out: set audit.holdout, at a real site audit_holdout in its policy, and run again"
NO_CANARIES = "no canary was planted: set audit.canaries, at a real site audit_canaries in its policy, and run again"


@dataclass(frozen=True)
class Audited:
    """What was found, and where it was written: `kept` stays at the site, `told` may leave it."""

    found: Mapping[str, Any]
    kept: Path
    told: Path


def audit(run: Path, site: str, *, real: Path | None = None, policy: Path | None = None) -> Audited:
    """Attack the run's generator from a site; audit.json in its own folder, and RUN/audits/SITE.json of what may leave.

    A real site names its `policy`, whose folder and data are meant; a simulated one has its own in the run folder.
    `real` is where the cases lie, if not where they lay in the run.

    **Raises** `RunError` where the run or the site isn't there, the run has not finished, or the policy is another's.
    """
    settings, result = _read(run)
    if site not in result.get("sites", {}):
        raise RunError(f"{run} has no site {site!r}; it has {', '.join(sorted(result.get('sites', {}))) or 'none'}")
    own = SitePolicy.read(policy or run / "sites" / site / "policy.yaml")
    if own.site != site or (policy is None) != own.simulation:
        raise RunError(f"expected the policy of {site!r}, by --policy where it is a real site; got {own.site!r}'s")
    folder = Path(own.folder) if policy else run / "sites" / site
    if not own.simulation:  # by its own rules and records, whatever the run folder says
        settings = replace(settings, audit=AuditSettings(), gate=GateSettings())
    claim = _claim(result["sites"][site]) if own.simulation else _own_claim(own, result["run"])
    members, others = _sides(settings, own, real, HoldoutRecord.of(folder, result["run"]))
    generator = load_generator(run / "generator")
    found: dict[str, Any] = {
        "site": site,
        "run": result["run"],
        "claim": claim,
        "membership": _membership(generator, members, others, settings),
        "canaries": _canaries(CanaryRecord.of(folder, result["run"]), generator, settings, claim["delta"] or 0.0),
        "copies": {"skipped": NO_HOLDOUT},
        "risk": _risk(claim["epsilon"], claim["delta"]),
    }
    synthetic = _synthetic(run, settings)
    if len(others) and synthetic is not None:
        found["copies"] = copies.copies(synthetic, members, others, seed=settings.seed)
        copies.draw_nearest(synthetic, members, _kept(folder / "nearest.png"))
    found["hashes"] = fingerprint(run, site, ledger=Path(own.ledger_path) if policy else None)
    found["verdict"] = verdict(found, settings.gate)
    found["at"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    found["version"] = __version__
    public = own.simulation and (settings.data.public or not settings.data.root)  # never the server's word
    told = leaving(found, public=public, gate=settings.gate)
    return Audited(found, _write(_kept(folder / "audit.json"), found), _write(run / "audits" / f"{site}.json", told))


def _read(run: Path) -> tuple[Settings, dict[str, Any]]:
    try:
        settings = Settings.from_mapping(yaml.safe_load((run / "settings.yaml").read_text(encoding="utf-8")))
        result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise RunError(f"expected a finished run in {run}, with settings.yaml and result.json: {error}") from error
    if result.get("status") != "completed":
        raise RunError(f"the run in {run} has status {result.get('status')!r}: only a completed one can be audited")
    return settings, result


def _claim(told: Mapping[str, Any]) -> dict[str, Any]:
    return {"epsilon": told.get("epsilon_run"), "delta": told.get("delta"), "unit": told.get("unit")}


def _own_claim(policy: SitePolicy, run: str) -> dict[str, Any]:
    """What the site's own ledger says that the run cost, all its plans together."""
    spending = spending_in(policy.ledger_path, key=load_key(policy.key_path), head_path=policy.head_path)
    plans = [plan for plan in spending.plans.values() if plan.run == run]
    if not plans:
        raise RunError(f"the ledger of {policy.site!r} knows of no run {run!r}: is it the policy of the site that ran?")
    epsilon = math.fsum(Plan.from_mapping(plan.mapping).epsilon_after(plan.reserved) for plan in plans)
    return {"epsilon": epsilon, "delta": math.fsum(plan.delta for plan in plans), "unit": policy.unit}


def _sides(settings: Settings, policy: SitePolicy, real: Path | None, record: HoldoutRecord) -> tuple[CaseSet, CaseSet]:
    """The patients who took part, and those held out of every round, by the very rule that the site followed."""
    if policy.simulation:
        data = replace(settings.data, root=str(real)) if real else settings.data
        cases, key = partition.held(data, settings.seed).parts[policy.site], holdout.simulated_key(settings.seed)
    else:
        cases = own_cases(replace(policy, data_root=str(real)) if real else policy, settings)
        key = load_key(policy.key_path)
    return holdout.split(cases, record.share(key), key)


def _membership(generator: Any, members: CaseSet, others: CaseSet, settings: Settings) -> dict[str, Any]:
    if not len(others):
        return {"skipped": NO_HOLDOUT}
    draw = np.random.default_rng(settings.seed)
    sides = [_at_most(cases, settings.audit.cases, draw) for cases in (members, others)]
    mine, theirs = (membership.attacks(generator, cases, settings) for cases in sides)
    return membership.summary(mine, theirs, seed=settings.seed)


def _canaries(record: CanaryRecord, generator: Any, settings: Settings, delta: float) -> dict[str, Any]:
    if not record.path.is_file():
        return {"skipped": NO_CANARIES}
    known = record.read()
    scores = record.total()
    if known["kind"] == "images":
        made = crafted(
            known["count"], seed=known["seed"], num_classes=len(settings.data.classes),
            num_masks=len(settings.data.mask_classes), size=settings.data.size,
        )  # fmt: skip
        cases = CaseSet(tuple(made), settings.data.classes, settings.data.mask_classes)
        by_attack = membership.attacks(generator, cases, settings)
        scores = next(by_attack[name] for name in membership.MAIN if name in by_attack)
    if len(scores) < one_run.FEWEST:
        return {"skipped": f"{len(scores)} canaries prove nothing: plant {one_run.FEWEST} at least, 200 to prove much"}
    if not np.isfinite(scores).all():
        return {"skipped": "no attack gives the crafted images scores under this generator: plant directions"}
    confidence = settings.audit.confidence
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


def _kept(path: Path) -> Path:
    """An empty file to write to, its owner's alone from the start: what comes is measured on patients."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # whoever has an older one open reads nothing of this one
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    return path
