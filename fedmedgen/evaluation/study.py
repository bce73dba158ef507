"""The whole evaluation of a study: the synthetic set beside real data and with it, the prior and each site alone."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

from fedmedgen.data.cases import CaseSet
from fedmedgen.evaluation import classification, inception, segmentation
from fedmedgen.evaluation.fidelity import fidelity
from fedmedgen.evaluation.mask_shapes import mask_shapes
from fedmedgen.evaluation.mixing import MIXED, mixed, rare
from fedmedgen.evaluation.recipe import skipped
from fedmedgen.settings import EvaluationSettings

log = logging.getLogger(__name__)

Yardstick = Callable[[CaseSet, str, int], dict[str, Any]]
"""Trains on a set (named for the log) with a number of seeds, and tests."""
TASKS = ("classification", "segmentation")
MOST_SITES = 8  # that are measured alone
RANKED_BY = {"classification": "auc", "segmentation": "dice_mean"}


class Options(TypedDict, total=False):
    """Who is told what is being measured, which tasks are, and the samples of the statistics alone."""

    progress: Callable[[str], None] | None
    tasks: Sequence[str]
    cheap: CaseSet | None


def evaluate(
    synthetic: CaseSet,
    train_by_site: Mapping[str, CaseSet],
    test: CaseSet,
    prior: CaseSet | None,
    settings: EvaluationSettings,
    seed: int,
    **options: Unpack[Options],
) -> dict[str, Any]:
    """Fidelity, shapes of masks, and by task a row for each training set; `rare` of the classes.

    Rows: tstr, trtr, cheap, prior, real_and_synthetic, best_site, per_site.

    What can't be measured is ``{"skipped": why}``. The best site is found by one seed on the test cases, which
    flatters it, never the synthetic set.
    """
    say = options.get("progress") or log.info
    train = _together(train_by_site, test)
    alike, why = _prior_like(test, prior, settings.prior_labels)
    sets: dict[str, CaseSet | str] = {"trtr": train, "tstr": synthetic}
    if cheap := options.get("cheap"):
        sets["cheap"] = cheap
    sets["prior"] = why if alike is None else alike
    sets = {row: cases for row, cases in sets.items() if row in (settings.rows or sets)}
    sites = {} if settings.rows and "best_site" not in settings.rows else train_by_site
    network = inception.load(Path(settings.inception), settings.inception_sha256) if settings.inception else None
    say("fidelity")
    near = fidelity(synthetic, train, seed=seed, max_cases=settings.fidelity_cases, prior=alike)
    found: dict[str, Any] = {"fidelity": near}
    if network is not None:
        real, made = (_at_most(cases, settings.fidelity_cases) for cases in (train, synthetic))
        found["inception_fid"] = inception.fid(network, made, real)
    found["mask_shapes"] = mask_shapes(synthetic, train)
    for task in options.get("tasks", TASKS):
        yardstick = _yardstick(task, test, settings, seed, say)
        own = sets | _both(train, synthetic, task, settings)
        found[task] = rows = _task(own, sites, yardstick, RANKED_BY[task], settings.seeds)
        if task == "classification" and {"trtr", MIXED} <= set(rows):
            rows["rare"] = rare(train, test, rows)
    return found


def _both(real: CaseSet, synthetic: CaseSet, task: str, settings: EvaluationSettings) -> dict[str, CaseSet | str]:
    """Real and synthetic cases together; each is cut first, so that neither loses cases by the other."""
    if settings.rows and MIXED not in settings.rows:
        return {}
    own, made = (_at_most(cases, settings.max_cases) for cases in (real, synthetic))
    return {MIXED: mixed(own, made, task)}


def _yardstick(
    task: str, test: CaseSet, settings: EvaluationSettings, seed: int, say: Callable[[str], None]
) -> Yardstick:
    def measure(cases: CaseSet, name: str, seeds: int) -> dict[str, Any]:
        say(f"{task}, trained on {name}")
        cut = _at_most(cases, settings.max_cases * (2 if name == MIXED else 1))
        if task == "classification":
            steps = settings.classifier_steps
            return classification.utility(cut, test, seeds=seeds, steps=steps, base_seed=seed)
        return segmentation.utility(cut, test, seeds=seeds, steps=settings.segmenter_steps, base_seed=seed)

    return measure


def _task(
    sets: Mapping[str, CaseSet | str],
    train_by_site: Mapping[str, CaseSet],
    yardstick: Yardstick,
    by: str,
    seeds: int,
) -> dict[str, Any]:
    """One task's rows; the first, real on real, decides whether the task can be measured at all."""
    rows: dict[str, Any] = {}
    for row, cases in sets.items():
        found = skipped(cases) if isinstance(cases, str) else yardstick(cases, row, seeds)
        if row == "trtr" and "skipped" in found:
            return found
        rows[row] = found
    return rows | _sites(train_by_site, yardstick, by, seeds)


def _sites(train_by_site: Mapping[str, CaseSet], yardstick: Yardstick, by: str, seeds: int) -> dict[str, Any]:
    """Each of the largest sites alone with one seed, and the best of them with all seeds."""
    if len(train_by_site) < 2:
        why = "there is one site only" if train_by_site else "not asked for (evaluation.rows)"
        return {"best_site": skipped(why), "per_site": {}}
    alone = {name: yardstick(cases, name, 1) for name, cases in _largest(train_by_site)}
    measured = {name: row[by]["mean"] for name, row in alone.items() if row.get(by)}
    if not measured:
        return {"best_site": skipped("no single site has enough cases"), "per_site": alone}
    best = max(measured, key=lambda name: measured[name])
    row = yardstick(train_by_site[best], f"{best} alone", seeds) if seeds > 1 else alone[best]
    return {"best_site": row | {"site": best}, "per_site": alone}


def _largest(train_by_site: Mapping[str, CaseSet]) -> list[tuple[str, CaseSet]]:
    """The sites with most cases, at most `MOST_SITES`, in the order of their names."""
    return sorted(sorted(train_by_site.items(), key=lambda item: -len(item[1]))[:MOST_SITES])


def _together(train_by_site: Mapping[str, CaseSet], test: CaseSet) -> CaseSet:
    return test.with_cases([case for name in sorted(train_by_site) for case in train_by_site[name]])


def _at_most(cases: CaseSet, count: int) -> CaseSet:
    """Evenly spaced cases, at most `count`, so that every site and class keeps its share."""
    if len(cases) <= count:
        return cases
    return cases.with_cases([cases.cases[place * len(cases) // count] for place in range(count)])


def _prior_like(test: CaseSet, prior: CaseSet | None, stand_ins: tuple[str, ...]) -> tuple[CaseSet | None, str]:
    """The prior's cases under the study's classes, or why there are none.

    `stand_ins` names for each class of the study the prior's class that stands for it; empty: the same names.
    """
    if prior is None or not len(prior):
        return None, "no prior for this study"
    if test.mask_classes and prior.mask_classes != test.mask_classes:
        prior = replace(prior, cases=tuple(replace(case, mask=None) for case in prior))
    if prior.classes == test.classes:
        return prior, ""
    names = stand_ins or test.classes
    missing = [name for name in names if name not in prior.classes]
    if missing or len(names) != len(test.classes):
        return None, f"the prior has no class that stands for {', '.join(missing) or 'each class'}"
    labels = {prior.classes.index(name): label for label, name in enumerate(names)}
    cases = [replace(case, label=labels[case.label]) for case in prior if case.label in labels]
    return replace(prior, cases=tuple(cases), classes=test.classes), ""
