"""Folders, archives and phantoms through the one door: classes, patients, splits, and what a bad file leaves alone."""

import shutil

import numpy as np
import pytest
from PIL import Image

from fedmedgen.cli import phantoms as phantoms_command
from fedmedgen.data import phantoms, sources, summary
from fedmedgen.errors import DataError
from fedmedgen.settings import ColumnSettings, DataSettings, PhantomSettings

SMALL = PhantomSettings(patients_per_site=40)


def test_a_folder_is_read_with_its_labels_masks_patients_and_splits(scan_site):
    cases = scan_site(size=(20, 24))
    assert cases.classes == ("normal", "opacity")
    assert [(case.name, case.label, case.patient, case.split, case.site) for case in cases] == [
        ("a.png", 0, "p0", "train", "north"),
        ("b.png", 1, "p1", "train", "north"),
        ("c.png", 0, "p2", "train", "north"),
        ("d.png", 1, "p3", "train", "north"),
    ]
    assert all(np.array_equal(case.mask, case.image[0] > 128 / 127.5 - 1 + 1e-4) for case in cases)


def test_a_site_folder_alone_is_a_set_of_one_site(site, scan_site):
    assert scan_site(root=site).sites == ("north",)


def test_masks_are_left_alone_where_no_mask_classes_are_set(site, scan_site):
    (site / "masks" / "a.png").write_text("broken")
    cases = scan_site(mask_classes=())
    assert [case.mask for case in cases] == [None] * 4
    assert cases.rejected == ()


def test_a_missing_mask_is_no_fault(site, scan_site):
    (site / "masks" / "a.png").unlink()
    cases = scan_site()
    assert [case.mask is None for case in cases] == [True, False, False, False]
    assert "1 of 4 cases have no mask" in summary.notes(cases)


def test_a_mask_may_have_another_suffix_than_its_picture(site, scan_site):
    Image.open(site / "images" / "a.png").convert("RGB").save(site / "images" / "a.jpg")
    (site / "images" / "a.png").unlink()
    table = site / "labels.csv"
    table.write_text(table.read_text().replace("a.png", "a.jpg"))
    assert all(case.mask is not None for case in scan_site())


def test_without_labels_csv_cases_are_unlabelled_and_each_image_is_a_unit(site, scan_site):
    (site / "labels.csv").unlink()
    cases = scan_site()
    assert [case.label for case in cases] == [None] * 4
    assert cases.classes == ()
    assert cases.unit == "image"
    assert len(summary.notes(cases)) == 2


def test_columns_may_have_other_names_and_none_may_be_meant(site, scan_site):
    table = site / "labels.csv"
    table.write_text(table.read_text().replace("patient", "patient_id"))
    cases = scan_site(columns=ColumnSettings(patient="patient_id", label="", label_name=""))
    assert [case.patient for case in cases] == ["p0", "p1", "p2", "p3"]
    assert [case.label for case in cases] == [None] * 4


def test_given_classes_decide_on_the_numbers_whatever_the_file_says(scan_site):
    cases = scan_site(classes=("opacity", "normal"))
    assert [case.label for case in cases] == [1, 0, 1, 0]


def test_numbers_without_names_count_into_the_given_classes(site, scan_site):
    (site / "labels.csv").write_text("filename,label\na.png,0\nb.png,1\nc.png,0\nd.png,2\n")
    cases = scan_site(classes=("normal", "opacity"))
    assert [case.label for case in cases] == [0, 1, 0]
    assert [bad.kind for bad in cases.rejected] == ["unknown-class"]
    assert scan_site().classes == ("0", "1", "2")


def test_a_bad_file_changes_nothing_about_the_others(site, scan_site):
    before = {case.name: case for case in scan_site()}
    (site / "images" / "b.png").write_bytes(b"")
    after = scan_site()
    assert [case.name for case in after] == ["a.png", "c.png", "d.png"]
    for case in after:
        assert np.array_equal(case.image, before[case.name].image)
        assert (case.label, case.split, case.patient) == (
            before[case.name].label,
            before[case.name].split,
            before[case.name].patient,
        )


def test_test_patients_are_drawn_by_patient_and_keep_their_split_when_others_go():
    cases = sources.load(DataSettings(phantoms=SMALL, size=(8, 8)), seed=0)
    by_unit = [{case.split for case in unit} for unit in cases.by_patient().values()]
    assert all(len(splits) == 1 for splits in by_unit)
    assert sum(splits == {"test"} for splits in by_unit) == 3 * 8


def test_phantom_sites_are_named_numbered_and_seeded():
    first, again, other = (
        sources.load(DataSettings(phantoms=SMALL, size=(8, 8), sites=2), seed=seed) for seed in (0, 0, 1)
    )
    assert first.sites == ("site-1", "site-2")
    assert np.array_equal(first.images(), again.images())
    assert first.images().shape != other.images().shape or not np.array_equal(first.images(), other.images())
    assert first.unit == "patient"
    assert max(len(unit) for unit in first.by_patient().values()) == 2


def test_an_npz_keeps_its_splits_and_every_image_is_a_unit(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 6), ("val", 2), ("test", 3)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (count, 12, 12), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(count, dtype=np.uint8)[:, None] % 2
    np.savez_compressed(tmp_path / "set.npz", **arrays)
    cases = sources.load(DataSettings(root=str(tmp_path / "set.npz"), size=(12, 12), min_patients=3), seed=0)
    assert [len(cases.of_split(split)) for split in ("train", "val", "test")] == [6, 2, 3]
    assert cases.unit == "image"
    assert cases.classes == ("0", "1")
    expected = arrays["train_images"].astype(np.float32)[:, None] / 127.5 - 1
    assert np.allclose(cases.of_split("train").images(), expected, atol=1e-6)


def test_an_npz_may_bring_masks_patients_and_names(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, 12, 12), dtype=np.uint8)
    np.savez(
        tmp_path / "set.npz",
        train_images=images,
        train_labels=np.array([0, 1, 1, 0]),
        train_masks=(images > 128).astype(np.uint8),
        train_patients=np.array(["a", "b", "b", "c"]),
        classes=np.array(["normal", "opacity"]),
    )
    settings = DataSettings(root=str(tmp_path / "set.npz"), size=(12, 12), mask_classes=("background", "x"))
    cases = sources.scan(settings, seed=0)
    assert cases.classes == ("normal", "opacity")
    assert len(cases.by_patient()) == 3
    assert all(np.array_equal(case.mask, image > 128) for case, image in zip(cases, images, strict=True))


def test_phantoms_written_to_a_folder_are_read_back_unchanged(tmp_path):
    drawn = phantoms.draw("chest", 12, size=(24, 24), seed=0, classes=("opacity", "nodule"))
    phantoms_command.write(drawn, tmp_path / "site-1", ("opacity", "nodule"), 3)
    settings = DataSettings(root=str(tmp_path), size=(24, 24), mask_classes=("background", "lung", "lesion"))
    read = sources.scan(settings, seed=0)
    assert read.rejected == ()
    for a, b in zip(drawn, read, strict=True):
        assert (a.name, a.patient, ("opacity", "nodule")[a.label]) == (b.name, b.patient, read.classes[b.label])
        assert np.array_equal(a.mask, b.mask)
        assert np.abs(a.image - b.image).max() <= 1 / 255 + 1e-6


def test_too_few_patients_name_the_files_that_were_set_aside(site):
    (site / "images" / "b.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"(?s)at least 8 usable patients.*north/b\.png: the file is empty") as caught:
        sources.load(DataSettings(root=str(site.parent)), seed=0)
    assert "got 3" in str(caught.value).replace("\n", " ")


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "changes", "count", "patients", "classes"),
    [
        ("lungs", {"mask_classes": ("background", "lung")}, 614, 614, ("normal", "tuberculosis")),
        ("dental", {"mask_classes": ("background", "caries"), "size": (64, 128)}, 80, 80, ("1",)),
        ("covid", {"columns": ColumnSettings(patient="patient_id")}, 243, 71, ("pa", "ap")),
        ("medmnist/pneumoniamnist.npz", {"size": (28, 28)}, 5856, 5856, ("0", "1")),
        ("fixtures/dicom", {"min_patients": 1}, 3, 2, ()),
    ],
)
def test_real_radiographs_are_read_whole(real_data, name, changes, count, patients, classes):
    cases = sources.load(DataSettings(root=str(real_data / name), **changes), seed=0)
    assert cases.rejected == ()
    assert len(cases) == count
    assert len(cases.by_patient()) == patients
    assert cases.classes == classes
    if "mask_classes" in changes:
        assert all(case.mask is not None and case.mask.any() for case in cases)


def test_more_sites_join_without_what_anybody_wrote_of_them(tmp_path, site, scan_site):
    shutil.copytree(site, tmp_path / "more" / "south")
    cases = scan_site(unlabelled=(str(tmp_path / "more"),))
    south = cases.of_site("south")
    assert len(south) == len(cases.of_site("north")) == 4
    assert {(case.label, case.mask, case.split) for case in south} == {(None, None, "train")}
    assert all(case.patient for case in south)


def test_only_the_sites_that_are_named_take_part(tmp_path, site, scan_site):
    shutil.copytree(site, tmp_path / "more" / "south")
    more = (str(tmp_path / "more"),)
    assert scan_site(unlabelled=more, only=("south",)).sites == ("south",)
    with pytest.raises(DataError, match=r"data.only names west; the sites are north, south"):
        scan_site(unlabelled=more, only=("west",))
