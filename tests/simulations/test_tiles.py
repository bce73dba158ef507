"""Tiles: cut, written, read as a data set, put together again."""

import csv
from dataclasses import replace

import numpy as np
import pytest

from fedmedgen.composition import compose
from fedmedgen.data.cases import Case, CaseSet
from fedmedgen.data.partition import held
from simulations import few_labels, tiles
from simulations.few_labels_tasks import Task


@pytest.fixture
def whole():
    """Two radiographs, of a test patient and a training patient, each with a finding; a tile of the first is black."""
    random, cases = np.random.default_rng(0), []
    for name, split in (("a.png", "test"), ("b.png", "train")):
        image = random.integers(0, 256, (1, 32, 64)).astype(np.float32) / 127.5 - 1
        mask = np.zeros((32, 64), np.uint8)
        mask[14:18, 30:34] = 1
        cases.append(Case(image=image, mask=mask, name=name, site="here", split=split))
    cases[0].image[:, 16:, 48:] = -1
    return CaseSet(tuple(cases), (), ("background", "caries"))


def test_tiles_put_together_are_the_radiograph(whole):
    parts = whole.with_cases([tile for case in whole for tile in tiles.cut(case, 16) if np.ptp(tile.image)])
    assert len(parts) == 15
    masks, again = tiles.joined([case.mask for case in parts], parts)
    for case, mask, found in zip(whole, masks, again, strict=True):
        np.testing.assert_array_equal(mask, case.mask)
        np.testing.assert_array_equal(found.mask, case.mask)
        np.testing.assert_array_equal(found.image, case.image)
        assert (found.name, found.site, found.split) == (case.name[:-4], case.site, case.split)


def test_what_is_no_tile_stays_as_it_is(whole):
    masks, again = tiles.joined([case.mask for case in whole], whole)
    assert again is whole
    assert masks[1] is whole.cases[1].mask


def test_a_folder_of_tiles_is_read_as_a_data_set(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(tiles, "cut", lambda case: list(_cut(case, 16)))
    tiles.write_tiles(whole, tmp_path)
    with (tmp_path / "here" / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {"filename": "a@0-0.png", "patient": "a.png", "split": "test"}
    words = (
        "study=dental", "privacy=none", f"data.root={tmp_path}", "data.columns.patient=patient", "data.size=[16,16]",
        "data.sites=1", "federation.min_sites=1", "data.min_patients=1",
    )  # fmt: skip
    settings = compose(words)
    loaded = held(settings.data, settings.seed).loaded
    assert loaded.unit == "patient"
    assert not loaded.rejected
    _, again = tiles.joined([case.mask for case in loaded], loaded)
    for case, found in zip(whole, again, strict=True):
        np.testing.assert_allclose(found.image, case.image, atol=1e-6)
        np.testing.assert_array_equal(found.mask, case.mask)


def test_all_tiles_of_a_patient_are_on_one_side(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(tiles, "cut", lambda case: list(_cut(case, 16)))
    six = [replace(whole.cases[1], name=f"{number}.png") for number in range(6)]
    tiles.write_tiles(whole.with_cases(six), tmp_path)
    words = ("study=dental", "privacy=none", f"data.root={tmp_path}", "data.columns.patient=patient",
             "data.size=[16,16]", "data.sites=1", "federation.min_sites=1", "data.min_patients=1")  # fmt: skip
    pool, validation, _ = few_labels.sides(compose(words), Task(words=words, labelled_at="here", validation=2))
    drawn = few_labels._drawn(pool, 3, 0)
    patients = [{case.patient for case in part} for part in (pool, validation, drawn)]
    assert [len(part) for part in patients] == [4, 2, 3]
    assert not patients[0] & patients[1]
    with_a_finding = [case for case in drawn if case.mask.any()]
    assert len(with_a_finding) == 3 * 4
    assert len(drawn) == 2 * len(with_a_finding)
    assert {case.name for case in few_labels._drawn(pool, 2, 0)} < {case.name for case in drawn}


def test_draws_of_patients_of_one_picture_are_the_pictures_drawn(whole):
    pool = [Case(image=whole.cases[0].image, name=f"{number}.png", site="here") for number in range(9)]
    order = np.random.default_rng(few_labels.seed_of(0, "few labels", 3)).permutation(9)
    assert few_labels._drawn(pool, 4, 3) == [pool[place] for place in order[:4]]


_cut = tiles.cut
