"""The certificate's numbers, each with its threshold and one sentence that needs no training to read."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from fedmedgen.privacy.accountant import risk_words, worst_true_positive_rate
from fedmedgen.release.evidence import Evidence, group
from fedmedgen.reporting.tables import number
from fedmedgen.reporting.words import one

Row = dict[str, Any]


def claim(evidence: Evidence) -> dict[str, Any]:
    """The promise to each patient, with everything that it rests on."""
    privacy, spent = evidence.result["privacy"], [site["epsilon_run"] for site in evidence.sites.values()]
    epsilon, delta = max(spent), privacy["delta"]
    return {
        "epsilon": epsilon,
        "epsilon_sum": math.fsum(spent),
        "delta": delta,
        "unit": privacy["unit"],
        "neighbouring": f"add or remove one {privacy['unit']} of one site",
        "mechanism": evidence.card.get("mechanism", ""),
        "accountant": privacy.get("accountant", ""),
        "trusted": "each site trusts itself alone; the server and the other sites may collude",
        "words": risk_words(epsilon, delta),
        "tpr_at_1pct_fpr_at_most": worst_true_positive_rate(epsilon, delta),
        "public_images": evidence.card.get("public images", "none"),
    }


def privacy_numbers(promise: Mapping[str, Any], audits: Mapping[str, Mapping[str, Any]], gate: Any) -> list[Row]:
    """What is promised, and what attacks found."""
    unit, worst = promise["unit"], promise["tpr_at_1pct_fpr_at_most"]
    return [
        _row("ε, any one site", promise["epsilon"], "",
             f"How much one {unit} can change what leaves a site: 0 is nothing at all, 1 is strong, 10 is weak."),
        _row("ε, all sites together", promise["epsilon_sum"], "",
             f"What it comes to for {one(unit)} whose images lie at every one of the sites."),
        _row("δ", promise["delta"], "", "The small chance that the promise above fails."),
        _row("attacker's success", f"{worst:.1%}", "",
             f"The most that anybody can do: how often he finds {one(unit)} that took part, if of a hundred that did "
             "not he may accuse one. Guessing blindly finds 1 %."),
        *_attacks(audits, gate, promise["epsilon"]),
    ]  # fmt: skip


def _attacks(audits: Mapping[str, Mapping[str, Any]], gate: Any, claim: float) -> Iterator[Row]:
    planted = _parts(audits, "canaries", "epsilon_lower_bound")
    if planted:
        worst = max(planted.values(), key=lambda part: float(part["epsilon_lower_bound"]))
        ceiling = max(float(part["ceiling"]) for part in planted.values())
        yield _row("ε shown by canaries", worst["epsilon_lower_bound"], "at most the claim",
                   f"A coin put some of {worst['count']} made-up patients into a site's training, and an attacker "
                   "guessed which: that shows epsilon to be at least this. Had every guess been right it would read "
                   f"{number(ceiling)}; a low value is no proof "
                   f"of safety{_blunt(ceiling, claim)}.")  # fmt: skip
    rows = [row for part in _parts(audits, "membership").values() for row in part.values()
            if isinstance(row, Mapping) and "auc" in row]  # fmt: skip
    if rows:
        best = max(rows, key=lambda row: float(row["auc"]))
        low, high = best["ci"]["auc"]
        yield _row("membership AUC", best["auc"], f"not surely above {gate['membership_auc']:g}",
                   f"The best of {len(rows)} tries at telling who took part from who did not: 0.5 is a coin, 1 is "
                   f"always right. It lies between {low:.2f} and {high:.2f}.")  # fmt: skip
    copied = _parts(audits, "copies", "nearer_to_train")
    if copied:
        most = max(copied.values(), key=lambda part: part["nearer_to_train"] - part["holdout_baseline"])
        yield _row("copies", f"{most['nearer_to_train']:.0%}", f"at most {gate['copies']:.0%} above chance",
                   "The share of synthetic images nearer to an image that took part than to any that did not; chance "
                   f"gives {most['chance'][0]:.0%} to {most['chance'][1]:.0%}.")  # fmt: skip


def _blunt(ceiling: float, claim: float) -> str:
    return ", and so few can't contradict the claim" if ceiling <= claim else ""


def worth_numbers(evidence: Evidence) -> list[Row]:
    """What the set can teach, and how near it is to real images."""
    found, gate = evidence.metrics, evidence.settings.gate
    near = group(found, "fidelity")
    rows = [_row("coverage", near.get("coverage"), f"at least {gate.coverage:g}",
                 "The share of real images that have a synthetic one nearby; real against real gives "
                 f"{number(group(near, 'floor').get('coverage'))}.")]  # fmt: skip
    if "fd" in near:
        rows.append(_row("FD", near["fd"], "",
                         "How far synthetic images are from real ones as an image network sees them: smaller is "
                         f"nearer; real against real gives {number(group(near, 'floor').get('fd'))}."))  # fmt: skip
    tasks = (
        ("classification", "auc", "AUC", gate.auc, "A classifier that saw synthetic images only ranks a random real "
         "image of a class above another one this often: 0.5 is a coin"),
        ("segmentation", "dice_mean", "Dice", gate.dice, "How well the masks that a network learned from synthetic "
         "images alone overlap a person's on real ones: 1 is perfect"),
    )  # fmt: skip
    for task, key, name, least, words in tasks:
        mean, real = (group(group(group(found, task), row), key).get("mean") for row in ("tstr", "trtr"))
        if mean is not None:
            rows.append(_row(name, mean, f"at least {least:g}", f"{words}; taught on real images: {number(real)}."))
    return rows


def _row(name: str, value: Any, threshold: str, words: str) -> Row:
    return {"name": name, "value": value, "threshold": threshold, "words": words}


def _parts(audits: Mapping[str, Mapping[str, Any]], name: str, key: str = "") -> dict[str, Mapping[str, Any]]:
    """A part of every audit that has it, by site; with the key where one is named."""
    found = {site: group(audit, name) for site, audit in audits.items()}
    return {site: part for site, part in found.items() if part and (not key or key in part)}
