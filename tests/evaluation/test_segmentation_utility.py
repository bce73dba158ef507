"""A fixed small U-Net trained on one set, tested on another; Dice and HD95 against numbers worked out by hand."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from fedmedgen.data.cases import Case, CaseSet
from fedmedgen.evaluation import segmentation

Make = Callable[..., CaseSet]


def masked(*masks: list[list[int]], classes: tuple[str, ...] = ("background", "a", "b")) -> CaseSet:
    cases = [
        Case(image=np.zeros((1, len(mask), len(mask[0])), np.float32), name=str(number), mask=np.array(mask, np.uint8))
        for number, mask in enumerate(masks)
    ]
    return CaseSet(tuple(cases), (), classes)


def test_masks_are_learned_from_pairs(discs: Make) -> None:
    found = segmentation.utility(discs(30), discs(20, seed=1), seeds=1, steps=30, base_seed=0)
    assert found["dice_mean"]["mean"] > 0.7
    assert found["dice"]["disc"] == found["dice_mean"]
    assert 0 <= found["hd95"]["mean"] < 8


def test_a_perfect_prediction_scores_one_and_no_distance(discs: Make) -> None:
    cases = discs(4)
    found = segmentation.score([case.mask for case in cases if case.mask is not None], cases)
    assert found["dice_mean"] == pytest.approx(1.0)
    assert found["hd95"] == pytest.approx(0.0)


def test_dice_is_twice_the_overlap_over_the_sum() -> None:
    cases = masked([[1, 1, 0, 0], [0, 0, 0, 0]], classes=("background", "a"))
    found = segmentation.score([np.array([[0, 1, 1, 0], [0, 0, 0, 0]], np.uint8)], cases)
    assert found["dice"]["a"] == pytest.approx(2 * 1 / (2 + 2))
    assert found["hd95"] == pytest.approx(0.95)  # the outlines' pixels are 0 and 1 apart: 95 % of the way


def test_a_case_counts_only_for_the_mask_classes_that_it_has() -> None:
    cases = masked([[1, 0], [0, 0]], [[2, 0], [0, 0]])
    found = segmentation.score([np.array([[1, 0], [0, 0]], np.uint8), np.array([[0, 2], [0, 0]], np.uint8)], cases)
    assert found["dice"] == {"a": pytest.approx(1.0), "b": pytest.approx(0.0)}
    assert found["dice_mean"] == pytest.approx(0.5)


def test_a_mask_class_that_no_case_has_is_none() -> None:
    found = segmentation.score([np.array([[1, 0]], np.uint8)], masked([[1, 0]]))
    assert found["dice"]["b"] is None
    assert found["dice_mean"] == pytest.approx(1.0)


def test_a_prediction_that_misses_the_structure_has_no_distance() -> None:
    found = segmentation.score([np.zeros((2, 2), np.uint8)], masked([[1, 0], [0, 0]]))
    assert found["hd95"] is None
    assert found["dice"]["a"] == pytest.approx(0.0)


def test_cases_without_masks_are_left_out_and_too_few_say_so(discs: Make) -> None:
    whole = discs(20)
    bare = whole.with_cases([replace(case, mask=None) for case in whole])
    assert "got 0" in segmentation.utility(bare, whole, seeds=1, steps=2, base_seed=0)["skipped"]
    assert segmentation.utility(replace(whole, mask_classes=()), whole, seeds=1, steps=2, base_seed=0) == {
        "skipped": "no masks"
    }


def test_predictions_have_the_size_of_the_case(discs: Make) -> None:
    cases = discs(8)
    wide = cases.with_cases(
        [replace(case, image=np.zeros((1, 20, 90), np.float32), mask=np.zeros((20, 90), np.uint8)) for case in cases]
    )
    network = segmentation.fit(wide, steps=1, seed=0)
    assert {mask.shape for mask in segmentation.predict(network, wide)} == {(20, 90)}


def test_the_same_seed_gives_the_same_numbers(discs: Make) -> None:
    first = segmentation.utility(discs(10), discs(10, seed=1), seeds=1, steps=3, base_seed=3)
    assert segmentation.utility(discs(10), discs(10, seed=1), seeds=1, steps=3, base_seed=3) == first


def test_masks_of_which_nothing_was_found_have_no_distance_and_are_counted() -> None:
    truth = masked([[1, 0, 0, 0], [0, 0, 0, 0]], [[1, 0, 0, 0], [0, 0, 0, 0]])
    found = segmentation.score([np.zeros((2, 4), np.uint8), np.array([[1, 0, 0, 0], [0, 0, 0, 0]], np.uint8)], truth)
    assert found["hd95"] == 0
    assert found["hd95_missed"] == 0.5
