"""Shapes of masks: parts, areas, and the distance of two sets that are known."""

from collections.abc import Sequence

import numpy as np

from fedmedgen.data.cases import Case, CaseSet
from fedmedgen.evaluation.mask_shapes import mask_shapes, parts

CLASSES = ("background", "lung")


def lungs(widths: Sequence[int], *, joined: bool = False, speck: bool = False) -> CaseSet:
    cases = []
    for number, width in enumerate(widths):
        mask = np.zeros((32, 32), np.uint8)
        mask[8:24, 4 : 4 + width] = mask[8:24, 28 - width : 28] = 1
        if joined:
            mask[15, 4:28] = 1
        if speck:
            mask[0, 0] = 1
        cases.append(Case(image=np.zeros((1, 32, 32), np.float32), name=str(number), mask=mask))
    return CaseSet(tuple(cases), (), CLASSES)


def test_parts_are_counted_by_touching_pixels_and_specks_are_not() -> None:
    one, two, touching = (np.zeros((8, 8), bool) for _ in range(3))
    one[2:5, 2:5] = True
    two[0:3, 0:3] = two[5:8, 5:8] = True
    touching[0:3, 0:3] = touching[3:6, 3:6] = True
    assert [parts(mask) for mask in (one, two, touching, ~(one | True))] == [1, 2, 1, 0]
    large = np.ones((64, 64), bool)
    large[0, 1] = large[1, 0] = large[1, 1] = False
    assert parts(large) == 1


def test_alike_sets_are_alike() -> None:
    real = lungs([5, 6, 7, 8])
    found = mask_shapes(real, real)["lung"]
    assert found["parts"] == 2
    assert found["as_usual"] == {"synthetic": 1.0, "real": 1.0}
    assert found["distance"] == 0
    assert found["areas"]["real"]["mean"] == np.mean([2 * 16 * width / 1024 for width in (5, 6, 7, 8)])


def test_masks_that_grew_together_and_those_of_another_size_are_seen() -> None:
    real = lungs([5, 6, 7, 8])
    found = mask_shapes(lungs([5, 6, 7, 8], joined=True), real)["lung"]
    assert found["as_usual"] == {"synthetic": 0.0, "real": 1.0}
    assert mask_shapes(lungs([1, 1, 2, 2]), real)["lung"]["distance"] == 1
    assert abs(sum(found["histogram"]["synthetic"]) - 1) < 1e-9
    assert mask_shapes(lungs([5, 6, 7, 8], speck=True), real)["lung"]["as_usual"]["synthetic"] == 1.0


def test_masks_that_come_again_and_again_are_counted() -> None:
    found = mask_shapes(lungs([5, 5, 5, 7]), lungs([5, 6, 7, 8]))["lung"]
    assert found["distinct"] == {"synthetic": 2, "real": 4}
    assert found["commonest"] == {"synthetic": 0.75, "real": 0.25}


def test_sets_without_masks_are_skipped() -> None:
    real = lungs([5])
    bare = CaseSet((Case(image=real.cases[0].image, name="a"),), (), ())
    assert "other mask classes" in mask_shapes(bare, real)["skipped"]
    assert "one side has no masks" in mask_shapes(real.with_cases([]), real)["skipped"]
