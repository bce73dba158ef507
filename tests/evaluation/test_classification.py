"""A fixed small network trained on one set, tested on another."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss

from fedmedgen.data.cases import CaseSet
from fedmedgen.evaluation import classification
from fedmedgen.evaluation.recipe import balanced

Make = Callable[..., CaseSet]


def test_a_set_that_carries_the_classes_is_learned(discs: Make) -> None:
    found = classification.utility(discs(40), discs(30, seed=1), seeds=2, steps=40, base_seed=0)
    assert found["auc"]["mean"] > 0.95
    assert set(found["recall"]) == {"left", "right"}
    assert (found["n_train"], found["n_test"], found["seeds"]) == (40, 30, 2)


def test_swapped_labels_give_an_auc_below_a_coin(discs: Make) -> None:
    made = discs(40)
    swapped = made.with_cases([replace(case, label=1 - (case.label or 0)) for case in made])
    found = classification.utility(swapped, discs(30, seed=1), seeds=1, steps=40, base_seed=0)
    assert found["auc"]["mean"] < 0.1


def test_the_same_seed_gives_the_same_numbers_whatever_the_global_state(discs: Make) -> None:
    first = classification.utility(discs(20), discs(20, seed=1), seeds=1, steps=5, base_seed=3)
    classification.utility(discs(20), discs(20, seed=1), seeds=1, steps=3, base_seed=9)
    assert classification.utility(discs(20), discs(20, seed=1), seeds=1, steps=5, base_seed=3) == first


def test_scores_agree_with_numbers_worked_out_by_hand() -> None:
    chances = np.array([[0.8, 0.1, 0.1], [0.3, 0.6, 0.1], [0.5, 0.4, 0.1], [0.2, 0.2, 0.6]])
    found = classification.score(chances, np.array([0, 1, 1, 2]), 3)
    # class 0: .8 against .3 .5 .2; class 1: .6 .4 against .1 .2; class 2: .6 against .1 .1 .1: all ranked right
    assert found["auc"] == 1.0
    assert found["accuracy"] == 0.75
    assert found["recall"] == [1.0, 0.5, 1.0]
    # confidences .8 (right), .6 (right), .5 (wrong), .6 (right); .6 and .6 share a bin
    assert found["ece"] == pytest.approx((0.2 + 2 * 0.4 + 0.5) / 4)
    # squares: .04+.01+.01, .09+.16+.01, .25+.36+.01, .04+.04+.16
    assert found["brier"] == pytest.approx((0.06 + 0.26 + 0.62 + 0.24) / 4 / 2)


def test_the_brier_score_agrees_with_scikit_learns() -> None:
    draw = np.random.default_rng(0)
    for classes in (2, 4):
        chances, truth = draw.dirichlet(np.ones(classes), 60), draw.integers(0, classes, 60)
        theirs = brier_score_loss(truth, chances, scale_by_half=True, labels=list(range(classes)))
        assert classification.brier(chances, truth) == pytest.approx(theirs)


def test_chances_that_come_true_as_often_as_they_say_are_calibrated_and_bold_ones_are_not() -> None:
    draw = np.random.default_rng(1)
    chance = draw.uniform(0, 1, 20000)
    truth = (draw.uniform(0, 1, 20000) < chance).astype(np.int64)
    assert classification.calibration_error(np.stack([1 - chance, chance], 1), truth) < 0.02
    bold = (chance > 0.5).astype(float) * 0.98 + 0.01
    assert classification.calibration_error(np.stack([1 - bold, bold], 1), truth) > 0.2


def test_a_class_without_test_cases_has_no_recall_and_takes_no_part_in_the_auc() -> None:
    chances = np.array([[0.9, 0.05, 0.05], [0.1, 0.8, 0.1]])
    found = classification.score(chances, np.array([0, 1]), 3)
    assert found["auc"] == 1.0
    assert np.isnan(found["recall"][2])


def test_a_class_absent_from_training_is_measured_as_missed(discs: Make) -> None:
    made, test = discs(30), discs(30, seed=1)
    three = ("left", "right", "rare")
    rare = [replace(case, label=2) for case in test.cases[:4]] + list(test.cases[4:])
    found = classification.utility(
        replace(made, classes=three), replace(test, cases=tuple(rare), classes=three), seeds=1, steps=10, base_seed=0
    )
    assert found["recall"]["rare"]["mean"] < 0.5


@pytest.mark.parametrize(
    ("train", "test", "words"),
    [
        (slice(0, 4), slice(None), "training cases"),
        (slice(None, None, 2), slice(None), "one class"),
        (slice(None), slice(None, None, 2), "one class"),
        (slice(None), slice(0, 3), "test cases"),
    ],
)
def test_what_cannot_be_measured_says_why(discs: Make, train: slice, test: slice, words: str) -> None:
    whole = discs(30)
    found = classification.utility(
        whole.with_cases(whole.cases[train]), whole.with_cases(whole.cases[test]), seeds=1, steps=2, base_seed=0
    )
    assert words in found["skipped"]


def test_unlabelled_cases_are_left_out(discs: Make) -> None:
    whole = discs(30)
    bare = whole.with_cases([replace(case, label=None) for case in whole])
    assert "got 0" in classification.utility(bare, whole, seeds=1, steps=2, base_seed=0)["skipped"]


def test_sets_with_other_classes_are_not_compared(discs: Make) -> None:
    other = replace(discs(20), classes=("right", "left"))
    assert "differ" in classification.utility(other, discs(20), seeds=1, steps=2, base_seed=0)["skipped"]


def test_each_class_is_drawn_as_often_as_any_other() -> None:
    chances = balanced(np.array([0, 0, 0, 2]))
    assert chances.tolist() == pytest.approx([1 / 6, 1 / 6, 1 / 6, 1 / 2])


def test_large_pictures_are_pooled_before_training(discs: Make) -> None:
    wide = [replace(case, image=np.tile(case.image, (1, 8, 16))) for case in discs(8)]
    pictures, _ = classification._tensors(discs(8).with_cases(wide))
    assert pictures.shape == (8, 1, 24, 48)
