"""What the figures of an audit come to, in words; and what of them may leave a site."""

from collections.abc import Mapping
from typing import Any

from fedmedgen.gate_settings import GateSettings

KEPT = {"kept": "at the site: it was measured on patients"}


def verdict(found: Mapping[str, Any], gate: GateSettings) -> dict[str, Any]:
    """`passed`, and a sentence for each part; a failed attack is never called proof."""
    parts = [_canaries(found), _membership(found["membership"], gate), _copies(found["copies"], gate)]
    if found["claim"]["epsilon"] is None:
        parts.append((False, "no privacy is claimed for this run: nothing of it may be released"))
    measured = any("skipped" not in found[name] for name in ("canaries", "membership", "copies"))
    if not measured:
        parts.append((False, "nothing was measured: plant canaries or hold patients out, and run again"))
    return {"passed": all(good for good, _ in parts), "words": [words for _, words in parts]}


def leaving(found: Mapping[str, Any], *, public: bool, gate: GateSettings) -> dict[str, Any]:
    """The part that may leave the site: what was measured on patients only where their data are public anyway.

    Canary scores come from what was released before and from coins that tell of no patient.
    """
    if public:
        return dict(found)
    kept = ["membership", "copies", *(["canaries"] if found["claim"]["epsilon"] is None else [])]
    told = {**found, **{name: {"skipped": KEPT["kept"]} for name in kept}}
    return dict(found) | dict.fromkeys(kept, KEPT) | {"verdict": verdict(told, gate)}


def _canaries(found: Mapping[str, Any]) -> tuple[bool, str]:
    part, claim = found["canaries"], found["claim"]["epsilon"]
    if "skipped" in part:
        return True, f"canaries: not measured ({part['skipped']})"
    least, ceiling = part["epsilon_lower_bound"], part["ceiling"]
    told = f"canaries: {part['correct']} of {part['guesses']} coins guessed right, so epsilon is at least {least:.2f}"
    told += f" at {part['confidence']:.1%} confidence"
    if claim is None:
        return True, told
    if least > claim:
        return False, f"{told}, above the {claim:g} claimed: the mechanism doesn't keep its promise"
    if ceiling <= claim:
        return True, f"{told}; {part['count']} canaries prove {ceiling:.2f} at most, so they can't contradict the claim"
    return True, f"{told}: no contradiction to the {claim:g} claimed, which is no proof of it"


def _membership(part: Mapping[str, Any], gate: GateSettings) -> tuple[bool, str]:
    known = {name: row for name, row in part.items() if isinstance(row, Mapping) and "auc" in row}
    if not known:
        return True, f"membership: not measured ({part.get('skipped', 'no attack gave scores')})"
    name = max(known, key=lambda name: known[name]["auc"])
    auc, (low, high) = known[name]["auc"], known[name]["ci"]["auc"]
    told = f"membership: the best of {len(known)} attacks, {name}, has AUC {auc:.2f} (from {low:.2f} to {high:.2f})"
    if low > gate.membership_auc:
        return False, f"{told}, above {gate.membership_auc:g}: patients who took part can be told from others"
    return True, f"{told}; 0.5 is chance, and other attacks may do better"


def _copies(part: Mapping[str, Any], gate: GateSettings) -> tuple[bool, str]:
    if "skipped" in part:
        return True, f"copies: not measured ({part['skipped']})"
    good, told = True, []
    for name in ("features", "pixels"):
        share, (low, high) = part[name]["nearer_to_train"], part[name]["chance"]
        good &= share <= max(high, part[name]["holdout_baseline"] + gate.copies)
        told.append(f"{share:.0%} in {name} (chance gives {low:.0%} to {high:.0%})")
    words = f"copies: nearer to a training image than to any held out are {' and '.join(told)} of the synthetic images"
    return good, words if good else f"{words}: the set repeats patients"
