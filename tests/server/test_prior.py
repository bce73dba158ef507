"""Public images: phantoms and public radiographs with the study's masks, never the study's own."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fedmedgen.composition import compose
from fedmedgen.data import phantoms, sources
from fedmedgen.data.cases import CaseSet
from fedmedgen.emission.writing import write_set
from fedmedgen.errors import SettingsError
from fedmedgen.federation.local_statistics import as_released
from fedmedgen.settings import Settings
from server.prior import public_cases


def study(*words: str) -> Settings:
    return compose(["study=demo", "smoke=true", "data.size=[16,16]", "prior.phantoms=6", *words])


def public_images(settings: Settings, private: CaseSet | None = None) -> Tensor:
    """Public cases as a release has them."""
    return as_released(settings, public_cases(settings, private))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four public radiographs, two of them without a mask."""
    drawn = phantoms.draw("chest", 4, size=(16, 16), seed=9, classes=("normal",), mask_classes=("background", "lung"))
    cases = [replace(case, mask=None if number < 2 else case.mask) for number, case in enumerate(drawn)]
    write_set(CaseSet(tuple(cases), ("normal",), ("background", "lung")), tmp_path / "public", datasheet={})
    return tmp_path / "public"


def test_phantoms_come_with_the_masks_that_the_generator_draws() -> None:
    assert public_images(study()).shape == (6, 2, 16, 16)
    assert public_images(study("generator.with_masks=false", "segmenter.rounds=0")).shape == (6, 1, 16, 16)


def test_without_phantoms_or_folders_there_is_no_public_image() -> None:
    assert public_images(study("prior.phantoms=0")).shape == (0, 2, 16, 16)


def test_where_the_study_has_masks_only_radiographs_with_masks_serve(folder: Path) -> None:
    roots = f"prior.roots=[{folder}]"
    assert len(public_images(study(roots))) == 6 + 2
    assert len(public_images(study(roots, "generator.with_masks=false", "segmenter.rounds=0"))) == 6 + 4


def test_a_copy_of_the_studys_own_radiographs_is_no_prior_whatever_its_name_and_exposure(folder: Path) -> None:
    settings = study(f"prior.roots=[{folder}]", "generator.with_masks=false", "segmenter.rounds=0")
    (first, *others) = sources.load(replace(settings.data, root=str(folder), min_patients=1), seed=0).cases
    strangers = CaseSet(tuple(replace(case, image=case.image[:, ::-1].copy()) for case in (first, *others)), ())
    assert torch.equal(public_images(settings, strangers), public_images(settings))  # nothing of them goes in
    brighter = strangers.with_cases([*strangers, replace(first, image=0.5 * first.image + 0.1, name="renamed.png")])
    with pytest.raises(SettingsError, match="is one of them"):
        public_images(settings, brighter)


def test_a_home_folder_is_seen_through(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    for own, root in ((str(folder), "~/public"), ("~/public", str(folder))):
        settings = study("prior.phantoms=0")
        settings = replace(
            settings, data=replace(settings.data, root=own), prior=replace(settings.prior, roots=(root,))
        )
        with pytest.raises(SettingsError, match="must not hold the study's own"):
            public_images(settings)


def test_the_studys_own_radiographs_are_no_prior(folder: Path) -> None:
    for root in (folder, folder.parent, folder / "images"):
        with pytest.raises(SettingsError, match="must not hold the study's own"):
            public_images(study(f"prior.roots=[{root}]", f"data.root={folder}"))


def test_a_varied_prior_is_another_of_the_same_images_and_the_same_each_time() -> None:
    plain, varied, again = (public_images(study(*words)) for words in ((), *2 * [("prior.varied=true",)]))
    assert varied.shape == plain.shape
    assert torch.equal(varied, again)
    assert float((varied - plain).abs().amax(dim=(1, 2, 3)).min()) > 0.05


RELEASED = ("statistics.share=1", "generator=moments", "segmenter.rounds=0")


@pytest.mark.parametrize("words", [RELEASED, ("statistics.share=0.5",), (*RELEASED, "prior.nearest=true")])
@pytest.mark.parametrize(("masks", "said"), [
    ("background,lungs", "'lungs'.*phantoms know lung, lesion"),
    ("background,lung,heart", "'heart'"),
])  # fmt: skip
def test_a_mask_class_that_no_public_image_shows_is_refused_where_masks_rest_on_them(
    words: tuple[str, ...], masks: str, said: str
) -> None:
    with pytest.raises(SettingsError, match=said):
        public_cases(study(*words, f"data.mask_classes=[{masks}]"))


def test_a_public_folder_that_shows_the_class_is_enough(folder: Path) -> None:
    words = ("data.mask_classes=[background,lungs]", f"prior.roots=[{folder}]")
    assert any((case.mask == 1).any() for case in public_cases(study(*RELEASED, *words)) if case.mask is not None)


@pytest.mark.parametrize("words", [
    ("statistics.share=0", "prior.steps=1"),
    (*RELEASED, "statistics.basis=cosine"),
    (*RELEASED, "statistics.basis=cosine", "prior.phantoms=0"),
    (*RELEASED, "prior.phantoms=0"),
    ("statistics.share=0.5", "generator.with_masks=false", "segmenter.rounds=0"),
])  # fmt: skip
def test_where_masks_do_not_rest_on_public_images_they_may_have_any_name(words: tuple[str, ...]) -> None:
    settings = study(*words, "data.mask_classes=[background,lungs]")
    assert len(public_cases(settings)) == settings.prior.phantoms
