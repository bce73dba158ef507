"""Real and synthetic cases together, and what the synthetic ones bring to the rarest class."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from itertools import cycle, islice
from typing import Any

from fedmedgen.data.cases import Case, CaseSet
from fedmedgen.evaluation.recipe import skipped

MIXED = "real_and_synthetic"


def evenly(real: CaseSet, synthetic: CaseSet) -> CaseSet:
    """Both, as many cases of either in each class: the fewer are repeated.

    Else nearly all cases of a rare class are synthetic, nearly all others real, and a classifier tells those apart.
    Cases without a label are a class of their own.
    """
    together: list[Case] = []
    for label in (*range(len(real.classes)), None):
        sides = [[case for case in cases if case.label == label] for cases in (real, synthetic)]
        most = max(map(len, sides))
        together += [case for side in sides if side for case in islice(cycle(side), most)]
    return real.with_cases(together)


def mixed(real: CaseSet, synthetic: CaseSet, task: str) -> CaseSet | str:
    """Both evenly, of the cases that this task can use; or why they can't be mixed."""
    if task == "classification":
        own, made = (
            cases.with_cases([case for case in cases if case.label is not None]) for cases in (real, synthetic)
        )
        alike = real.classes == synthetic.classes
    else:
        own, made = (cases.with_cases([case for case in cases if case.mask is not None]) for cases in (real, synthetic))
        alike = real.mask_classes == synthetic.mask_classes
        if real.classes != synthetic.classes or any(case.label is None for cases in (own, made) for case in cases):
            own, made = (_without_labels(cases) for cases in (own, made))
    if not alike:
        return "the synthetic set has other classes than the real cases"
    if not len(own) or not len(made):
        return f"no {'real' if not len(own) else 'synthetic'} case that {task} can use"
    return evenly(own, made)


def rare(real: CaseSet, test: CaseSet, rows: Mapping[str, Any]) -> dict[str, Any]:
    """Recall of the real cases' rarest class after training on real ones alone, and on both.

    `count` and `n_test` are its real cases in training and in the test: with few of them, so uncertain is the recall.
    """
    counts, seen = (Counter(case.label for case in cases) for cases in (real, test))
    known = [label for label in range(len(real.classes)) if counts[label] and seen[label]]
    if not known:
        return skipped("no class has both training and test cases")
    label = min(known, key=lambda one: counts[one])
    name = real.classes[label]
    recalls = {key: rows[row].get("recall", {}).get(name) for key, row in
               (("real_only", "trtr"), ("with_synthetic", MIXED))}  # fmt: skip
    if missing := [key for key, value in recalls.items() if value is None]:
        return skipped(f"no recall of {name}: {', '.join(missing)}")
    return {"class": name, "count": counts[label], "n_test": seen[label], **recalls}


def _without_labels(cases: CaseSet) -> CaseSet:
    return cases.with_cases([replace(case, label=None) for case in cases])
