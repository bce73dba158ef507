"""Real and synthetic cases together, and the recall of the rarest class."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest

from fedmedgen.data.cases import CaseSet
from fedmedgen.evaluation import study
from fedmedgen.evaluation.mixing import evenly, mixed, rare
from fedmedgen.settings import EvaluationSettings

Make = Callable[..., CaseSet]
FEW = EvaluationSettings(seeds=1, classifier_steps=30, max_cases=200, rows=("trtr", "real_and_synthetic"))


def made(cases: CaseSet) -> CaseSet:
    return cases.with_cases([replace(case, site="synthetic") for case in cases])


def with_few_right(cases: CaseSet, right: int) -> CaseSet:
    kept = [case for case in cases if case.label == 1][:right]
    return cases.with_cases([*(case for case in cases if case.label == 0), *kept])


def test_each_class_has_as_many_cases_of_either_source(discs: Make) -> None:
    both = evenly(with_few_right(discs(30), 2), made(discs(10, seed=1)))
    counts = Counter((case.label, case.site == "synthetic") for case in both)
    assert counts == {(0, False): 15, (0, True): 15, (1, False): 5, (1, True): 5}


def test_masks_without_labels_are_mixed_by_source_alone(discs: Make) -> None:
    bare = discs(12).with_cases([replace(case, label=None) for case in discs(12)])
    both = mixed(bare, made(discs(6)), "segmentation")
    assert isinstance(both, CaseSet)
    assert Counter(case.site == "synthetic" for case in both) == {False: 12, True: 12}


def test_only_cases_that_the_task_can_use_take_part(discs: Make) -> None:
    whole = discs(12)
    half = whole.with_cases([replace(case, mask=None) if place < 6 else case for place, case in enumerate(whole)])
    both = mixed(half, made(discs(6)), "segmentation")
    assert isinstance(both, CaseSet)
    assert all(case.mask is not None for case in both)
    assert len(both) == 12


@pytest.mark.parametrize("task", ["classification", "segmentation"])
def test_sets_that_cannot_be_mixed_say_why(discs: Make, task: str) -> None:
    real = discs(12)
    other = replace(made(discs(6)), classes=("right", "left"), mask_classes=("background", "ring"))
    bare = made(real).with_cases([replace(case, label=None, mask=None) for case in real])
    assert "other classes" in str(mixed(real, other, task))
    assert f"no synthetic case that {task} can use" in str(mixed(real, bare, task))


def test_the_rarest_class_is_told_with_and_without_synthetic_cases(discs: Make) -> None:
    sites = {"a": with_few_right(discs(60), 3)}
    found = study.evaluate(discs(60, seed=1), sites, discs(30, seed=2), None, FEW, 0, tasks=["classification"])
    rows = found["classification"]
    assert set(rows) == {"trtr", "real_and_synthetic", "rare", "best_site", "per_site"}
    assert (rows["rare"]["class"], rows["rare"]["count"], rows["rare"]["n_test"]) == ("right", 3, 15)
    assert rows["rare"]["real_only"] == rows["trtr"]["recall"]["right"]
    assert rows["rare"]["with_synthetic"] == rows["real_and_synthetic"]["recall"]["right"]


def test_a_class_that_the_test_lacks_is_not_the_rarest(discs: Make) -> None:
    row = {"recall": {"left": {"mean": 0.5, "sd": 0.0}, "right": {"mean": 0.7, "sd": 0.0}}}
    rows = {"trtr": row, "real_and_synthetic": row}
    left = with_few_right(discs(10), 0)
    assert rare(with_few_right(discs(30), 2), left, rows)["class"] == "left"


def test_a_rare_class_without_a_recall_says_which_is_missing(discs: Make) -> None:
    rows = {"trtr": {"recall": {}}, "real_and_synthetic": {"skipped": "no synthetic case"}}
    assert "real_only, with_synthetic" in rare(discs(10), discs(10), rows)["skipped"]


def test_without_the_mixed_row_nothing_is_said_of_a_rare_class(discs: Make) -> None:
    settings = replace(FEW, rows=("trtr", "tstr"), classifier_steps=3)
    found = study.evaluate(discs(20), {"a": discs(20)}, discs(16, seed=3), None, settings, 0, tasks=["classification"])
    assert set(found["classification"]) == {"trtr", "tstr", "best_site", "per_site"}
