"""Synthetic cases from a generator."""

import dataclasses

import numpy as np
import pytest

from fedmedgen.emission import emit
from fedmedgen.emission.sampling import label_counts
from fedmedgen.errors import SettingsError
from fedmedgen.models.denoiser import Denoiser, build_denoiser
from fedmedgen.models.lean import drawing_in
from fedmedgen.settings import GeneratorSettings

TINY = GeneratorSettings(unshuffle=1, channels=(8, 16), attention=(False, False), norm_groups=4, sampler_steps=3)


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    model = build_denoiser(TINY, num_classes=2, num_masks=1, size=(12, 16), seed=0)
    return model.name_classes(["normal", "sick"], ["background", "lung"])


def test_so_many_cases_of_each_class_come_out_as_training_cases_with_masks(denoiser: Denoiser) -> None:
    cases = emit(denoiser, counts={"sick": 3, "normal": 2}, settings=TINY, batch_size=2, seed=0)
    assert [case.label for case in cases] == [0, 0, 1, 1, 1]
    assert (cases.classes, cases.mask_classes) == (("normal", "sick"), ("background", "lung"))
    for case in cases:
        assert case.image.shape == (1, 12, 16)
        assert case.mask is not None
        assert case.mask.shape == (12, 16)
        assert case.image.dtype == np.float32
        assert -1 <= case.image.min() <= case.image.max() <= 1
        assert case.mask.max() <= 1
        assert (case.split, case.patient) == ("train", None)
    assert len({case.name for case in cases}) == 5


def test_in_bf16_the_same_images_come_out_but_for_a_rounding(denoiser: Denoiser) -> None:
    plain = emit(denoiser, counts=4, settings=TINY, seed=3).images()
    coarse = emit(drawing_in(denoiser, "bf16"), counts=4, settings=TINY, seed=3).images()
    assert 0 < np.abs(coarse - plain).max() < 0.1
    assert np.array_equal(emit(denoiser, counts=4, settings=TINY, seed=3).images(), plain)  # the network is as it was


def test_the_same_seed_gives_the_same_set_whatever_the_batch_size(denoiser: Denoiser) -> None:
    whole = emit(denoiser, counts=5, settings=TINY, batch_size=5, seed=3).images()
    parts = emit(denoiser, counts=5, settings=TINY, batch_size=2, seed=3).images()
    other = emit(denoiser, counts=5, settings=TINY, batch_size=5, seed=4).images()
    np.testing.assert_allclose(whole, parts, atol=1.1 / 127.5)
    assert np.abs(whole - other).max() > 0.1


def test_more_cases_of_one_class_leave_the_others_as_they_were(denoiser: Denoiser) -> None:
    few = emit(denoiser, counts={"normal": 1, "sick": 2}, settings=TINY, seed=0).images()[1:]
    more = emit(denoiser, counts={"normal": 4, "sick": 2}, settings=TINY, seed=0).images()[4:]
    np.testing.assert_allclose(few, more, atol=1.1 / 127.5)


@pytest.mark.parametrize("sampler", ["stochastic", "dpmpp"])
def test_every_sampler_draws_a_set(denoiser: Denoiser, sampler: str) -> None:
    settings = dataclasses.replace(TINY, sampler=sampler)
    assert np.isfinite(emit(denoiser, counts=2, settings=settings, seed=0).images()).all()


def test_progress_is_told_after_every_batch(denoiser: Denoiser) -> None:
    seen: list[tuple[int, int]] = []
    emit(denoiser, counts=5, settings=TINY, batch_size=2, seed=0, progress=lambda done, of: seen.append((done, of)))
    assert seen == [(2, 5), (4, 5), (5, 5)]


def test_a_generator_of_images_without_classes_gives_neither_labels_nor_masks() -> None:
    model = build_denoiser(TINY, num_classes=0, num_masks=0, size=(8, 8), seed=0)
    cases = emit(model, counts=2, settings=TINY, seed=0)
    assert [(case.label, case.mask) for case in cases] == [(None, None)] * 2


def test_a_plain_number_is_spread_evenly() -> None:
    assert label_counts(("a", "b", "c"), 8) == {"a": 3, "b": 3, "c": 2}
    assert label_counts((), 8) == {"": 8}


def test_an_unknown_class_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(SettingsError, match=r"unknown class 'nodul' \(did you mean 'nodule'\?\)"):
        label_counts(("normal", "nodule"), {"nodul": 3})


def test_a_negative_count_is_refused() -> None:
    with pytest.raises(SettingsError, match="at least 0; got -1"):
        label_counts(("a",), {"a": -1})
