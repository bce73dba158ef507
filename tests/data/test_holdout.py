"""Patients held out: by their own id and the site's key alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmedgen.data.cases import Case, CaseSet
from fedmedgen.data.crafted import crafted, some_of
from fedmedgen.data.holdout import split


def cases(patients: list[str], images: int = 2, *, named: bool = True) -> CaseSet:
    image = np.zeros((1, 4, 4), np.float32)
    made = [
        Case(image=image, name=f"{patient}-{number}", patient=patient if named else None, site="north")
        for patient in patients
        for number in range(images)
    ]
    return CaseSet(tuple(made), ("normal",))


NAMES = [f"patient-{number}" for number in range(300)]


def test_about_the_share_is_held_out_and_no_case_is_lost() -> None:
    kept, held = split(cases(NAMES), 0.5, b"key")
    assert len(kept) + len(held) == 600
    assert 0.4 < len(held) / 600 < 0.6
    assert not {case.patient for case in kept} & {case.patient for case in held}


def test_without_a_share_nobody_is_held_out() -> None:
    kept, held = split(cases(NAMES), 0.0, b"key")
    assert (len(kept), len(held)) == (600, 0)


@pytest.mark.parametrize("named", [True, False], ids=["patient", "image"])
@given(st.sets(st.integers(0, 299), min_size=1, max_size=40))
def test_who_is_held_out_depends_on_no_other_patient(named: bool, chosen: set[int]) -> None:
    everyone = {case.name for case in split(cases(NAMES, named=named), 0.5, b"key")[1]}
    some = [NAMES[number] for number in sorted(chosen)]
    held = {case.name for case in split(cases(some, named=named), 0.5, b"key")[1]}
    assert held == {name for name in everyone if name.rsplit("-", 1)[0] in some}


def test_an_id_may_hold_bytes_that_are_no_text() -> None:
    kept, held = split(cases([*NAMES, "M\udcfcller"]), 0.5, b"key")
    assert len(kept) + len(held) == 602


def test_another_key_holds_out_others() -> None:
    assert {case.patient for case in split(cases(NAMES), 0.5, b"key")[1]} != {
        case.patient for case in split(cases(NAMES), 0.5, b"another")[1]
    }


def test_crafted_images_are_patients_of_their_own_and_repeat_with_their_seed() -> None:
    made = crafted(8, seed=3, num_classes=2, num_masks=0, size=(28, 20))
    assert len({case.patient for case in made}) == 8
    assert all(case.image.shape == (1, 28, 20) and set(np.unique(case.image)) == {-1, 1} for case in made)
    assert all(case.mask is None for case in made)
    masked = crafted(8, seed=3, num_classes=2, num_masks=3, size=(28, 20))
    assert {int(value) for case in masked for value in np.unique(case.mask)} == {0, 1, 2}
    assert all(case.mask.shape == (28, 20) for case in masked if case.mask is not None)
    again = crafted(8, seed=3, num_classes=2, num_masks=0, size=(28, 20))
    assert all((one.image == other.image).all() for one, other in zip(made, again, strict=True))
    assert len(some_of(made, [1, 0] * 4)) == 4
