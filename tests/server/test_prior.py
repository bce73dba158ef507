"""Public images: phantoms and public radiographs with the study's masks, never the study's own."""

from dataclasses import replace
from pathlib import Path

import pytest

from fedmedgen.composition import compose
from fedmedgen.data import phantoms
from fedmedgen.data.cases import CaseSet
from fedmedgen.emission.writing import write_set
from fedmedgen.errors import SettingsError
from fedmedgen.settings import Settings
from server.prior import public_images


def study(*words: str) -> Settings:
    return compose(["study=demo", "smoke=true", "data.size=[16,16]", "prior.phantoms=6", *words])


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


def test_the_studys_own_radiographs_are_no_prior(folder: Path) -> None:
    for root in (folder, folder.parent, folder / "images"):
        with pytest.raises(SettingsError, match="must not hold the study's own"):
            public_images(study(f"prior.roots=[{root}]", f"data.root={folder}"))
