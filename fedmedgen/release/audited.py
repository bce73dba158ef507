"""The sites' audits before the gate: one from each, of this very run, and none that found something."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from fedmedgen.audit.identity import fingerprint
from fedmedgen.audit.verdict import KEPT, verdict
from fedmedgen.release.evidence import Evidence, group

WHAT = {
    "generator": "generator",
    "settings": "settings.yaml",
    "ledger": "ledger of the site",
    "synthetic": "synthetic set",
}
PARTS = ("canaries", "membership", "copies")
CLOSE = 1e-6


def audits(evidence: Evidence) -> Iterator[str]:
    """Every site has audited this generator, this set and this ledger, and nothing was found against the claim."""
    for site in evidence.sites:
        if site not in evidence.audits:
            yield (
                f"{site}: no audit: have the site run `fedmedgen audit RUN --site {site}` "
                f"and bring its audits/{site}.json into the run folder"
            )
            continue
        yield from (f"{site}: {why}" for why in _audit(evidence, site, evidence.audits[site]))


def _audit(evidence: Evidence, site: str, found: Mapping[str, Any]) -> Iterator[str]:
    if found.get("site") != site or found.get("run") != evidence.name:
        yield f"its audit is of {found.get('site')!r} in the run {found.get('run')!r}"
    now, then = fingerprint(evidence.run, site), group(found, "hashes")
    for part, words in WHAT.items():
        if not now[part] or now[part] != then.get(part):
            yield f"the {words} is not the one that was audited: it was changed, or the audit is of another; audit anew"
    told, claimed = evidence.sites[site].get("epsilon_run"), group(found, "claim").get("epsilon")
    if told is None or claimed is None or not math.isclose(told, claimed, rel_tol=CLOSE):
        yield f"its audit was held against a claim of epsilon {claimed}; the run claims {told}"
    if group(found, "verdict").get("passed") is not True:
        yield f"its audit failed: {'; '.join(map(str, group(found, 'verdict').get('words', [])))}"
    yield from _figures(evidence, found, told)


def _figures(evidence: Evidence, found: Mapping[str, Any], claim: float | None) -> Iterator[str]:
    """The figures themselves, by the rule the site followed, whatever the audit's own verdict says."""
    parts = {name: _seen(group(found, name)) for name in PARTS}
    least = evidence.settings.gate.canaries
    few = not int(parts["canaries"].get("count", 0)) >= least
    if all("skipped" in part for name, part in parts.items() if not (name == "canaries" and few)):
        how = f"plant {least} canaries or more (audit_canaries in the site's policy) and run again"
        yield f"its audit measured nothing, or by too few canaries: {how}"
    if not all(math.isfinite(value) for value in parts["canaries"].values() if isinstance(value, float)):
        yield "its audit holds figures that are no numbers: audit anew"
    for name, part in parts.items():
        alone = {other: {"skipped": "judged apart"} for other in PARTS} | {name: part}
        judged = verdict({"claim": {"epsilon": claim}, **alone}, evidence.settings.gate)
        said = [words for words in judged["words"] if words.startswith(name)]
        if "skipped" not in part and not judged["passed"]:
            yield "; ".join(said)


def _seen(part: Mapping[str, Any]) -> Mapping[str, Any]:
    """A part of an audit; what was kept at the site can't be judged here."""
    return {"skipped": KEPT["kept"]} if not part or "kept" in part else part
