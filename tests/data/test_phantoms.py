"""Phantoms: the same from the same seed, exact masks, a rare class, sites apart from the prior."""

from itertools import pairwise

import numpy as np
import pytest

from fedmedgen.data import phantoms
from fedmedgen.settings import DataSettings, PhantomSettings

CHEST = phantoms.classes_of("chest")


@pytest.mark.parametrize("anatomy", ["chest", "panoramic"])
@pytest.mark.parametrize("size", [(64, 64), (32, 32), (48, 96)])
def test_films_are_pictures_of_the_asked_size_with_masks(anatomy, size):
    cases = phantoms.draw(anatomy, 20, size=size, seed=0)
    assert len(cases) == 20
    for case in cases:
        assert case.image.shape == (1, *size)
        assert case.image.dtype == np.float32
        assert -1 <= case.image.min() < case.image.max() <= 1
        assert case.mask is not None
        assert case.mask.shape == size
        assert set(np.unique(case.mask)) <= {0, 1, 2}
        assert 0.04 < (case.mask == 1).mean() < 0.6


@pytest.mark.parametrize("anatomy", ["chest", "panoramic"])
def test_the_same_seed_gives_the_same_films_and_another_seed_others(anatomy):
    first, again, other = (phantoms.draw(anatomy, 5, size=(32, 32), seed=seed) for seed in (3, 3, 4))
    assert all(np.array_equal(a.image, b.image) and a.label == b.label for a, b in zip(first, again, strict=True))
    assert not any(np.array_equal(a.image, b.image) for a, b in zip(first, other, strict=True))


def test_another_size_shows_the_same_anatomy():
    small, large = (phantoms.draw("chest", 8, size=(size, size), seed=1) for size in (32, 64))
    for a, b in zip(small, large, strict=True):
        coarse = (b.mask > 0).reshape(32, 2, 32, 2).mean((1, 3)) > 0.5
        assert a.label == b.label
        assert ((a.mask > 0) == coarse).mean() > 0.97


def test_nodules_are_a_rare_class_of_five_percent():
    labels = np.array([case.label for case in phantoms.draw("chest", 4000, size=(8, 8), seed=0)])
    assert 0.035 < (labels == CHEST.index("nodule")).mean() < 0.065


@pytest.mark.parametrize(("anatomy", "finding"), [("chest", "nodule"), ("chest", "opacity"), ("panoramic", "caries")])
def test_a_lesion_is_marked_where_it_is_seen_and_only_there(anatomy, finding):
    sick = phantoms.draw(anatomy, 60, size=(64, 64), seed=5, classes=(finding,))
    well = phantoms.draw(anatomy, 60, size=(64, 64), seed=5, classes=("normal",))
    assert all((case.mask != 2).all() for case in well)
    assert all((case.mask == 2).any() for case in sick)
    sign = -1 if anatomy == "panoramic" else 1
    contrast = [
        sign * (ill.image[0][ill.mask == 2] - fit.image[0][ill.mask == 2]).mean()
        for ill, fit in zip(sick, well, strict=True)
    ]
    assert np.mean(contrast) > 0.15
    assert np.mean(np.array(contrast) > 0) > 0.95


def test_lungs_are_darker_than_what_is_around_them():
    for case in phantoms.draw("chest", 40, size=(64, 64), seed=2):
        lungs = case.image[0][case.mask == 1].mean()
        between = case.image[0][24:40, 30:34].mean()
        assert lungs < between - 0.2


def test_mask_classes_that_are_not_wanted_become_what_surrounds_them():
    whole = phantoms.draw("panoramic", 10, size=(32, 64), seed=0, classes=("caries",))
    teeth = phantoms.draw("panoramic", 10, size=(32, 64), seed=0, classes=("caries",), mask_classes=("bg", "tooth"))
    decay = phantoms.draw("panoramic", 10, size=(32, 64), seed=0, classes=("caries",), mask_classes=("bg", "caries"))
    bare = phantoms.draw("panoramic", 2, size=(32, 64), seed=0, mask_classes=())
    for every, tooth, caries in zip(whole, teeth, decay, strict=True):
        assert np.array_equal(tooth.mask, every.mask > 0)
        assert np.array_equal(caries.mask, every.mask == 2)
    assert [case.mask for case in bare] == [None, None]


def test_sites_differ_from_the_prior_and_from_each_other():
    styles = [phantoms.PRIOR_STYLE, *(phantoms.site_style(0, f"site-{number}") for number in range(1, 6))]
    for number, style in enumerate(styles):
        for other in styles[:number]:
            assert style.exposure != other.exposure
    assert all(abs(style.exposure - phantoms.PRIOR_STYLE.exposure) > 0.02 for style in styles[1:])
    seeds = {phantoms.site_seed(0, f"site-{number}") for number in range(1, 6)}
    assert len(seeds) == 5


def test_a_prior_takes_the_studys_classes_size_and_masks():
    data = DataSettings(size=(28, 28), mask_classes=("background", "lung"))
    prior = phantoms.prior(50, data=data, classes=("normal", "pneumonia"), seed=0)
    assert prior.classes == ("normal", "pneumonia")
    assert prior.images().shape == (50, 1, 28, 28)
    assert {case.label for case in prior} == {0, 1}
    assert {value for case in prior for value in np.unique(case.mask)} == {0, 1}


def test_a_prior_for_classes_that_phantoms_do_not_know_has_no_labels():
    data = DataSettings(size=(16, 16), phantoms=PhantomSettings(anatomy="panoramic"))
    prior = phantoms.prior(10, data=data, classes=("ap", "pa"), seed=0)
    assert [case.label for case in prior] == [None] * 10


def test_films_of_one_patient_share_anatomy_but_are_not_copies():
    cases = phantoms.draw("chest", 40, size=(32, 32), seed=0, images_per_patient=3)
    pairs = [(a, b) for a, b in pairwise(cases) if a.patient == b.patient]
    assert len({case.patient for case in cases}) == 40
    assert len(pairs) > 10
    assert all(a.label == b.label and not np.array_equal(a.image, b.image) for a, b in pairs)
