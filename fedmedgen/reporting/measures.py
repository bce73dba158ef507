"""What was measured of a synthetic set: from two sources, and the part of it that tells about no single site."""

from collections.abc import Mapping
from typing import Any

TASKS = ("classification", "segmentation")
OF_PATIENTS = ("trtr", "real_and_synthetic")  # their number of cases is that of the sites' patients
LEFT_OUT = {"skipped": "left out: it would tell about single sites, whose data are not public"}
Measures = Mapping[str, Any]


def of_set(own: Measures, later: Measures, present: str) -> dict[str, Any]:
    """What was measured of the set of this hash; of a part that both have, the run's own, unless skipped there."""
    sources = [own, later, {name: part for name, part in own.items() if "skipped" not in _group(part)}]
    known: dict[str, Any] = {}
    for found in sources:
        of_this = found.get("set") == present
        known |= {name: part for name, part in found.items() if of_this or "skipped" in _group(part)}
    return known


def without_sites(found: Measures) -> dict[str, Any]:
    """Means over all held-out patients alone: no site by itself, no counts of real cases, no areas of real masks."""
    kept = dict(found)
    if near := _group(found.get("fidelity")):
        kept["fidelity"] = {name: value for name, value in near.items() if name != "n"}
    for name in TASKS:
        if task := _group(found.get(name)):
            kept[name] = {row: _without_count(row, part) for row, part in task.items() if row != "per_site"}
    if "mask_shapes" in kept:
        kept["mask_shapes"] = LEFT_OUT
    return kept


def _without_count(row: str, part: Any) -> Any:
    if row in ("best_site", "rare"):
        return LEFT_OUT
    if row in OF_PATIENTS and isinstance(part, Mapping):
        return {name: value for name, value in part.items() if name not in ("n_train", "n_test")}
    return part


def _group(part: Any) -> Measures:
    return part if isinstance(part, Mapping) else {}
