"""All rows of an evaluation, and what is said where a row can't be measured."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from fedmedgen.data.cases import CaseSet
from fedmedgen.errors import SettingsError
from fedmedgen.evaluation.study import evaluate
from fedmedgen.settings import EvaluationSettings

Make = Callable[..., CaseSet]
FEW = EvaluationSettings(seeds=2, classifier_steps=12, segmenter_steps=4, max_cases=30)


def test_every_row_is_there_with_its_parts(discs: Make) -> None:
    said: list[str] = []
    sites = {"a": discs(20), "b": discs(20, seed=1)}
    found = evaluate(discs(30, seed=2), sites, discs(16, seed=3), discs(30, seed=4), FEW, 0, progress=said.append)
    assert set(found) == {"fidelity", "mask_shapes", "classification", "segmentation"}
    for task, key in (("classification", "auc"), ("segmentation", "dice_mean")):
        rows = ("tstr", "trtr", "prior", "real_and_synthetic", "best_site")
        assert set(found[task]) == {*rows, "per_site"} | ({"rare"} if task == "classification" else set())
        assert all(set(found[task][row][key]) == {"mean", "sd"} for row in rows)
        assert found[task]["real_and_synthetic"]["n_train"] == 60  # 30 of either, though both sites have 40
        assert found[task]["best_site"]["site"] in sites
        assert set(found[task]["per_site"]) == set(sites)
    assert found["fidelity"]["floor"]["fd"] > 0
    assert found["fidelity"]["prior"]["fd"] > 0
    assert any("tstr" in words for words in said)


def test_samples_of_the_statistics_alone_are_a_row_where_a_study_has_them(discs: Make) -> None:
    few = replace(FEW, seeds=1, classifier_steps=3)
    found = evaluate(
        discs(20), {"a": discs(20)}, discs(16, seed=3), None, few, 0, tasks=["classification"], cheap=discs(24, seed=5)
    )
    assert list(found["classification"])[:4] == ["trtr", "tstr", "cheap", "prior"]
    assert found["classification"]["cheap"]["auc"]["mean"] >= 0


def test_only_the_rows_asked_for_are_measured(discs: Make) -> None:
    few = replace(FEW, seeds=1, classifier_steps=3, rows=("tstr", "cheap"))
    sites = {"a": discs(20), "b": discs(20, seed=1)}
    more = {"tasks": ["classification"], "cheap": discs(24, seed=5)}
    found = evaluate(discs(20), sites, discs(16, seed=3), None, few, 0, **more)["classification"]
    assert set(found) == {"tstr", "cheap", "best_site", "per_site"}
    assert "skipped" in found["best_site"]
    with pytest.raises(SettingsError, match="of tstr, trtr, real_and_synthetic, cheap, prior and best_site"):
        replace(FEW, rows=("tsrt",))


def test_one_class_skips_classification_and_measures_the_rest(discs: Make) -> None:
    def left(cases: CaseSet) -> CaseSet:
        return cases.with_cases([case for case in cases if case.label == 0])

    sites = {"a": left(discs(40)), "b": left(discs(40, seed=1))}
    found = evaluate(left(discs(40, seed=2)), sites, left(discs(40, seed=3)), None, FEW, 0)
    assert "one class" in found["classification"]["skipped"]
    assert found["segmentation"]["tstr"]["dice_mean"]
    assert found["segmentation"]["prior"] == {"skipped": "no prior for this study"}


def test_no_masks_skips_segmentation(discs: Make) -> None:
    bare = replace(discs(20), mask_classes=())
    found = evaluate(bare, {"a": bare}, bare, None, FEW, 0, tasks=["segmentation"])
    assert found["segmentation"] == {"skipped": "no masks"}
    assert "classification" not in found


def test_one_site_has_no_best_site(discs: Make) -> None:
    found = evaluate(discs(20), {"a": discs(20)}, discs(16, seed=3), None, FEW, 0, tasks=["classification"])
    assert found["classification"]["best_site"] == {"skipped": "there is one site only"}


def test_a_site_too_small_to_learn_from_is_skipped_and_the_other_is_best(discs: Make) -> None:
    sites = {"big": discs(20), "small": discs(4, seed=1)}
    found = evaluate(discs(20), sites, discs(16, seed=3), None, FEW, 0, tasks=["classification"])
    assert found["classification"]["best_site"]["site"] == "big"
    assert "got 4" in found["classification"]["per_site"]["small"]["skipped"]


def test_the_prior_of_other_names_stands_in_by_the_settings(discs: Make) -> None:
    prior = replace(discs(30, seed=4), classes=("right", "left"))
    right = replace(FEW, prior_labels=("right", "left"), seeds=1, classifier_steps=40)
    found = evaluate(discs(20), {"a": discs(20)}, discs(30, seed=3), prior, right, 0, tasks=["classification"])
    assert found["classification"]["prior"]["auc"]["mean"] > 0.9


def test_a_prior_without_the_classes_says_which_are_missing(discs: Make) -> None:
    prior = replace(discs(30, seed=4), classes=("up", "left"))
    found = evaluate(discs(20), {"a": discs(20)}, discs(16, seed=3), prior, FEW, 0, tasks=["classification"])
    assert "stands for right" in found["classification"]["prior"]["skipped"]


@pytest.mark.parametrize("seeds", [1, 2])
def test_the_number_of_seeds_is_kept(discs: Make, seeds: int) -> None:
    settings = replace(FEW, seeds=seeds, classifier_steps=3)
    sites = {"a": discs(20), "b": discs(20, seed=1)}
    found = evaluate(discs(20), sites, discs(16, seed=3), None, settings, 0, tasks=["classification"])
    assert found["classification"]["tstr"]["seeds"] == seeds
    assert found["classification"]["best_site"]["seeds"] == seeds
