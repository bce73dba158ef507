"""Each site's ledger held against its policy, and the claim against the mechanism that the ledger fixed."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedmedgen.errors import FedmedgenError, LedgerError
from fedmedgen.federation.plan import STATISTICS
from fedmedgen.federation.policy import check_plan
from fedmedgen.privacy.budget import Plan
from fedmedgen.privacy.ledger import Limit, head_beside, load_key, spending_in
from fedmedgen.privacy.spending import PlanSpending, Spending
from fedmedgen.release.evidence import Evidence, group

CLOSE = 1e-3  # relative: another version of the accountant may round differently
ROUNDED = 5.1e-5  # the cards print epsilon in four decimals


@dataclass(frozen=True, kw_only=True)
class Account:
    """What one site's ledger says: all that was spent, and this run's plans."""

    site: str
    spending: Spending
    limit: Limit
    plans: tuple[PlanSpending, ...]
    macs_checked: bool

    @property
    def epsilon_planned(self) -> float:
        """Of all steps of all plans of this run, by the accountant of today."""
        return math.fsum(Plan.from_mapping(plan.mapping).epsilon for plan in self.plans)

    @property
    def epsilon_spent(self) -> float:
        """Of the steps that were reserved, by the accountant of today."""
        return math.fsum(Plan.from_mapping(plan.mapping).epsilon_after(plan.reserved) for plan in self.plans)


def account(evidence: Evidence, site: str) -> Account:
    """A site's ledger, its chain checked against its head, and its MACs wherever the key is at hand.

    **Raises** `LedgerError` if ledger or head is missing, or the record isn't whole.
    """
    path = evidence.site_folder(site) / "ledger.jsonl"
    for file in (path, head_beside(path)):
        if not file.is_file():
            raise LedgerError(f"no {file.name} in {file.parent}: have the site send a copy of its ledger and head")
    key = _key(evidence, site)
    spending = spending_in(path, key=key, head_path=head_beside(path))
    policy = evidence.policies.get(site)
    limit = Limit(policy.lifetime_epsilon, policy.lifetime_delta) if policy else spending.limit
    if limit is None:
        raise LedgerError("the ledger has no plan in it, so no limit of the site's policy is known")
    plans = tuple(plan for plan in spending.plans.values() if plan.run == evidence.name)
    return Account(site=site, spending=spending, limit=limit, plans=plans, macs_checked=key is not None)


def ledgers(evidence: Evidence) -> Iterator[str]:
    """Every site's ledger is there, whole, and within what the site's policy allows."""
    for site in evidence.sites:
        try:
            known = account(evidence, site)
            if evidence.settings.simulated and site not in evidence.policies:
                yield f"{site}: its folder has no policy.yaml, as a simulated site's has: nothing says what it allowed"
            if known.spending.closed or known.spending.torn:
                yield f"{site}: a line of the ledger was torn by a crash, so what this run cost can't be told"
            known.spending.refuse_above(known.limit)
            for plan in known.plans:
                if site in evidence.policies:
                    check_plan(evidence.policies[site], Plan.from_mapping(plan.mapping))
        except FedmedgenError as error:
            yield f"{site}: {error}"


def claim(evidence: Evidence) -> Iterator[str]:
    """The epsilon in print is what the mechanism in the ledger costs, everywhere it is printed."""
    costs = []
    for site, told in evidence.sites.items():
        try:
            known = account(evidence, site)
        except FedmedgenError:
            continue  # said by the check of the ledgers
        if not known.plans:
            yield f"{site}: its ledger knows of no plan for the run {evidence.name!r}: it is another run's"
            continue
        yield from (f"{site}: {why}" for why in _site(evidence, known, told))
        costs.append(known.epsilon_planned)
    privacy = group(evidence.result, "privacy")
    spent = [float(told.get("epsilon_run") or 0) for told in evidence.sites.values()]
    most, said = max(spent, default=0.0), privacy.get("epsilon")
    if said is None or not math.isclose(float(said), most, rel_tol=CLOSE):
        yield f"result.json claims epsilon {said} for the run; the site that spent most spent {most:.4g}"
    target = evidence.settings.privacy.epsilon
    if max([*costs, *spent], default=0.0) > target * (1 + CLOSE):
        yield f"the run cost epsilon {max([*costs, *spent]):.4g}; its settings promise {target:g}"
    if costs:
        yield from _print("the generator's card", evidence.card, evidence, max(costs))
        yield from _print("the set's datasheet.json", evidence.sheet, evidence, max(costs))


def _site(evidence: Evidence, known: Account, told: Mapping[str, Any]) -> Iterator[str]:
    said, cost, spent = float(told.get("epsilon_run") or 0), known.epsilon_planned, known.epsilon_spent
    for plan in known.plans:
        mechanism = Plan.from_mapping(plan.mapping)
        if mechanism.digest != plan.digest:
            yield f"plan {plan.digest[:12]} of the ledger isn't the one its steps and noise make"
        if mechanism.epsilon > plan.epsilon * (1 + CLOSE):
            yield f"the ledger counts epsilon {plan.epsilon:.4g} for a plan that costs {mechanism.epsilon:.4g}"
        if plan.delta != evidence.settings.privacy.delta or told.get("delta") != plan.delta:
            yield f"delta is {plan.delta:g} in the ledger, {told.get('delta')} in result.json"
        yield from _noise(group(evidence.result, "privacy"), mechanism)
    if said < spent * (1 - CLOSE):
        yield f"result.json claims epsilon {said:.4g}; the steps in the ledger cost {spent:.4g}"
    if said > cost * (1 + CLOSE):
        yield f"result.json claims epsilon {said:.4g}; the whole plan in the ledger costs {cost:.4g}, not this"


def _noise(privacy: Mapping[str, Any], mechanism: Plan) -> Iterator[str]:
    """The mechanism in print is the one in the ledger."""
    for stage in mechanism.stages:
        said = privacy.get("statistics_noise_multiplier" if stage.name == STATISTICS else "noise_multiplier")
        if said is None or not math.isclose(float(said), stage.noise_multiplier, rel_tol=CLOSE):
            yield f"result.json says noise {said} for {stage.name}; the ledger says {stage.noise_multiplier:.4g}"


def _print(where: str, facts: Mapping[str, Any], evidence: Evidence, cost: float) -> Iterator[str]:
    if str(facts.get("run")) != evidence.name:
        yield f"{where} is of the run {facts.get('run')!r}; this one is {evidence.name!r}"
    try:
        epsilon, delta = float(facts["epsilon"]), float(facts["delta"])
    except (KeyError, TypeError, ValueError):
        yield f"{where} prints no epsilon and delta"
        return
    if abs(epsilon - cost) > ROUNDED + CLOSE * cost or delta != evidence.settings.privacy.delta:
        yield f"{where} prints epsilon {epsilon:.4g} at delta {delta:g}; the mechanism in the ledger costs {cost:.4g}"


def _key(evidence: Evidence, site: str) -> bytes | None:
    root = evidence.settings.ledger.root
    places = [evidence.site_folder(site), *([Path(root) / site] if root else [])]
    return next((load_key(place / "site.key") for place in places if (place / "site.key").is_file()), None)
