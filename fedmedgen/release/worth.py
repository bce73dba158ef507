"""Is the set worth releasing? What was measured of it, held against the study's own thresholds."""

from collections.abc import Iterator, Mapping
from typing import Any

from fedmedgen.release.evidence import Evidence, group

HOW = "`fedmedgen evaluate RUN/synthetic --real PUBLIC_CASES --run RUN --out RUN/metrics.json`"


def worth(evidence: Evidence) -> Iterator[str]:
    """Everything that the set promises was measured, and reaches its threshold."""
    for name, value, least, why in figures(evidence):
        if value is None:
            yield f"{name} was not measured ({why}): measure it by {HOW}"
        elif not value >= least:  # nan is below everything
            yield f"{name} is {value:.3f}, below the {least:g} that the gate asks for"


def figures(evidence: Evidence) -> list[tuple[str, float | None, float, str]]:
    """What is asked of a set like this one: name, value, threshold, and why there is no value."""
    gate, found = evidence.settings.gate, evidence.metrics
    near = group(found, "fidelity")
    asked = [("coverage", near.get("coverage"), gate.coverage, _why(near))]
    if len(evidence.sheet.get("classes") or ()) > 1:
        asked.append(("AUC (TSTR)", *_mean(group(found, "classification"), "auc", gate.auc)))
    if (evidence.run / "synthetic" / "masks").is_dir():
        asked.append(("Dice (TSTR)", *_mean(group(found, "segmentation"), "dice_mean", gate.dice)))
    return asked


def _mean(task: Mapping[str, Any], key: str, least: float) -> tuple[float | None, float, str]:
    row = group(task, "tstr")
    return group(row, key).get("mean"), least, _why(task if "skipped" in task else row)


def _why(part: Mapping[str, Any]) -> str:
    return str(part.get("skipped") or "evaluation was skipped, or it was of another set")
