"""Partitions: every training case once, a patient never at two sites, each site with enough."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmedgen.data import summary
from fedmedgen.data.cases import Case, CaseSet
from fedmedgen.data.partition import partition
from fedmedgen.errors import DataError, SettingsError
from fedmedgen.settings import DataSettings

IMAGE = np.zeros((1, 8, 8), np.float32)


def _cases(patients: int, films: int = 2, classes: int = 2, origins: int = 2) -> CaseSet:
    made = [
        Case(
            IMAGE,
            f"{patient}-{film}.png",
            label=patient % classes,
            patient=f"p{patient // origins}",
            site=f"origin-{patient % origins}",
            split="test" if patient % 5 == 4 else "train",
        )
        for patient in range(patients)
        for film in range(films)
    ]
    return CaseSet(tuple(made), tuple("abcdef"[:classes]))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(40, 120),
    st.sampled_from(["natural", "even", "dirichlet", "by-size"]),
    st.integers(1, 4),
    st.floats(0.3, 50),
    st.integers(0, 1000),
)
def test_every_training_case_is_at_one_site_and_no_patient_at_two(patients, how, sites, alpha, seed):
    cases = _cases(patients)
    shares = tuple(float(number) for number in range(1, sites + 1))
    data = DataSettings(partition=how, sites=sites, alpha=alpha, shares=shares, min_patients=1)
    parts = partition(cases, data, seed=seed)
    placed = Counter(case.name for part in parts.values() for case in part)
    assert placed == Counter(case.name for case in cases.of_split("train"))
    owner: dict[str, set[str]] = {}
    for site, part in parts.items():
        assert all(case.site == site for case in part)
        for case in part:
            owner.setdefault(case.name.split("-")[0], set()).add(site)
    assert all(len(held) == 1 for held in owner.values())
    assert list(parts) == sorted(parts)
    total = sum(len(part.by_patient()) for part in parts.values())
    assert total == len(cases.of_split("train").by_patient())


def test_the_largest_sites_alone_hold_what_they_hold_among_all():
    cases, data = _cases(100), DataSettings(partition="by-size", sites=3, shares=(1.0, 3.0, 2.0), min_patients=1)
    every = partition(cases, data, seed=0)
    for count, names in ((1, ["site-2"]), (2, ["site-2", "site-3"])):
        few = partition(cases, replace(data, largest_sites=count), seed=0)
        assert list(few) == names
        for name in names:
            assert [case.name for case in few[name]] == [case.name for case in every[name]]
    (few,) = partition(cases, replace(data, largest_sites=1, max_patients=5), seed=0)
    assert few == "site-2"  # the largest before its patients are cut to five
    with pytest.raises(SettingsError, match=r"data\.largest_sites"):
        replace(data, largest_sites=4)
    with pytest.raises(SettingsError, match=r"data\.largest_sites.*natural"):
        replace(data, partition="natural", largest_sites=1)


def test_patients_of_one_name_from_two_origins_stay_two_patients():
    cases = _cases(40)
    parts = partition(cases, DataSettings(partition="even", sites=2, min_patients=1), seed=0)
    patients = [case.patient for part in parts.values() for case in part]
    assert {patient.split("/")[0] for patient in patients} == {"origin-0", "origin-1"}
    assert len(set(patients)) == len(cases.of_split("train").by_patient())


def test_even_sites_have_equally_many_patients():
    parts = partition(_cases(100), DataSettings(partition="even", sites=4, min_patients=1), seed=0)
    assert [len(part.by_patient()) for part in parts.values()] == [20, 20, 20, 20]


def test_shares_of_size_are_kept_to_within_a_patient():
    data = DataSettings(partition="by-size", sites=3, shares=(6, 3, 1), min_patients=1)
    parts = partition(_cases(250, films=1), data, seed=0)
    assert [len(part.by_patient()) for part in parts.values()] == [120, 60, 20]


def test_a_small_alpha_gives_sites_of_one_class_and_a_large_one_gives_equal_mixes():
    def spread(alpha: float) -> float:
        data = DataSettings(partition="dirichlet", sites=3, alpha=alpha, min_patients=4)
        rows = summary.table(partition(_cases(600, films=1, origins=1), data, seed=1))
        shares = [row["classes"]["a"] / row["images"] for row in rows]
        return max(shares) - min(shares)

    assert spread(0.1) > 0.6
    assert spread(1000.0) < 0.1


def test_a_dirichlet_draw_is_repeated_until_each_site_has_enough():
    data = DataSettings(partition="dirichlet", sites=3, alpha=0.2, min_patients=10)
    for seed in range(10):
        parts = partition(_cases(120), data, seed=seed)
        assert min(len(part.by_patient()) for part in parts.values()) >= 10


def test_a_dirichlet_draw_that_never_gives_enough_is_refused():
    data = DataSettings(partition="dirichlet", sites=4, alpha=0.001, min_patients=20)
    with pytest.raises(DataError, match="in 100 tries"):
        partition(_cases(100), data, seed=0)


def test_the_same_seed_gives_the_same_partition():
    data = DataSettings(partition="dirichlet", sites=3, min_patients=1)
    first, again, other = (partition(_cases(90), data, seed=seed) for seed in (1, 1, 2))
    names = [[[case.name for case in part] for part in parts.values()] for parts in (first, again, other)]
    assert names[0] == names[1]
    assert names[0] != names[2]


def test_a_natural_site_with_too_few_patients_is_left_out_and_named(caplog):
    cases = _cases(40, origins=1)
    small = CaseSet((*cases.cases, Case(IMAGE, "x", 0, patient="x", site="tiny", split="train")), cases.classes)
    parts = partition(small, DataSettings(min_patients=8), seed=0)
    assert list(parts) == ["origin-0"]
    assert "site tiny is left out: 1 training patients, fewer than 8" in caplog.text


def test_ten_sites_sort_in_the_order_of_their_numbers():
    parts = partition(_cases(100), DataSettings(partition="even", sites=12, min_patients=1), seed=0)
    assert list(parts)[:2] + list(parts)[-1:] == ["site-01", "site-02", "site-12"]


def test_shares_must_match_the_sites():
    with pytest.raises(SettingsError, match=r"data\.shares must be 3 numbers above 0"):
        partition(_cases(40), DataSettings(partition="by-size", sites=3, shares=(1.0, 0.0, 2.0)), seed=0)


def test_the_table_counts_patients_images_classes_and_masks():
    rows = summary.table({"all": _cases(10)})
    assert rows == [
        {"site": "all", "patients": 10, "images": 20, "classes": {"a": 10, "b": 10}, "unlabelled": 0, "masks": 0}
    ]


def _with(cases: CaseSet, label: int) -> set[str]:
    return {f"{case.site}/{case.patient}" for case in cases if case.label == label}


@pytest.mark.parametrize("how", ["natural", "even"])
@pytest.mark.parametrize(("cut", "kept"), [({"rare_share": 0.1}, 4), ({"rare_patients": 7}, 7)])
def test_a_rare_class_keeps_so_many_whole_patients_and_no_other_patient_is_lost(how, cut, kept):
    cases = _cases(100, classes=2, origins=2)
    data = DataSettings(partition=how, sites=2, min_patients=1, rare_class="b", **cut)
    full = partition(cases, replace(data, rare_class="", rare_share=0.0, rare_patients=0), seed=3)
    parts = partition(cases, data, seed=3)
    placed = Counter(case.name for part in parts.values() for case in part)
    everybody = Counter(case.name for part in full.values() for case in part)
    label = {case.name: case.label for case in cases}
    assert {name for name in everybody if label[name] == 0} == {name for name in placed if label[name] == 0}
    assert sum(len(_with(part, 1)) for part in parts.values()) == kept
    assert sum(label[name] == 1 for name in placed) == 2 * kept  # both films of each
    assert placed <= everybody


def test_which_patients_stay_depends_on_the_seed_and_not_on_the_order_of_the_cases():
    cases = _cases(100)
    data = DataSettings(partition="natural", min_patients=1, rare_class="b", rare_patients=5)
    turned = cases.with_cases(cases.cases[::-1])

    def stay(held, seed):
        return set().union(*(_with(part, 1) for part in partition(held, data, seed=seed).values()))

    assert stay(cases, 0) == stay(turned, 0)
    assert stay(cases, 0) != stay(cases, 1)


def test_a_patient_with_one_film_of_the_rare_class_goes_with_all_her_films():
    cases = CaseSet(
        tuple(
            Case(IMAGE, f"{patient}-{film}.png", label=film, patient=f"p{patient}", site="a", split="train")
            for patient in range(10)
            for film in range(2)
        ),
        ("normal", "nodule"),
    )
    data = DataSettings(partition="natural", min_patients=1, rare_class="nodule", rare_patients=3)
    part = partition(cases, data, seed=0)["a"]
    assert Counter(case.label for case in part) == {0: 3, 1: 3}


def test_an_unknown_rare_class_is_refused():
    data = DataSettings(partition="natural", min_patients=1, rare_class="z", rare_patients=3)
    with pytest.raises(SettingsError, match=r"rare_class must be one of the classes \(a, b\)"):
        partition(_cases(40), data, seed=0)


@pytest.mark.parametrize("words", [{"rare_class": "b"}, {"rare_share": 0.1}, {"rare_class": "b", "rare_share": 0.1,
                                                                             "rare_patients": 2}])  # fmt: skip
def test_a_rare_class_goes_with_one_way_to_cut_it(words):
    with pytest.raises(SettingsError, match="rare_class must be named together with either"):
        DataSettings(**words)


def _masked(patients: int = 40) -> CaseSet:
    cases = _cases(patients)
    mask = np.ones((8, 8), np.uint8)
    return replace(cases.with_cases([replace(case, mask=mask) for case in cases]), mask_classes=("background", "lung"))


def _labelled(cases: CaseSet, **words: object) -> set[tuple[str, str | None]]:
    parts = partition(cases, DataSettings(min_patients=1, **words), seed=0)
    return {(case.site, case.patient) for part in parts.values() for case in part if case.mask is not None}


def test_only_so_many_patients_keep_their_masks_and_all_of_hers() -> None:
    cases = _masked()
    few, more = _labelled(cases, labelled=3), _labelled(cases, labelled=6)
    assert (len(few), len(more)) == (3, 6)
    assert few < more
    parts = partition(cases, DataSettings(min_patients=1, labelled=3), seed=0)
    assert sum(case.mask is not None for part in parts.values() for case in part) == 6  # two films each
    assert sum(map(len, parts.values())) == len(cases.of_split("train"))
    assert _labelled(cases, labelled=3, labelled_draw=1) != few


def test_the_masks_may_be_one_sites_alone_and_too_many_are_refused() -> None:
    cases = _masked()
    assert {site for site, _ in _labelled(cases, labelled=4, labelled_sites=("origin-1",))} == {"origin-1"}
    assert _labelled(cases, labelled=0) == set()
    with pytest.raises(DataError, match="masks of 99 patients"):
        _labelled(cases, labelled=99)


def test_a_site_without_ids_does_not_part_the_patients_of_another() -> None:
    image = np.zeros((1, 8, 8), np.float32)
    named = [Case(image, f"a-{number}", patient=f"p{number // 4}", site="north", split="train") for number in range(80)]
    nameless = [Case(image, f"b-{number}", site="south", split="train") for number in range(40)]
    parts = partition(CaseSet((*named, *nameless), ()), DataSettings(partition="even", sites=4, min_patients=1), seed=0)
    where: dict[str, set[str]] = {}
    for site, cases in parts.items():
        for case in cases:
            if case.patient:
                where.setdefault(case.patient, set()).add(site)
    assert len(where) == 20
    assert all(len(sites) == 1 for sites in where.values())
    assert sum(map(len, parts.values())) == 120


def test_where_any_id_is_missing_every_image_is_clipped_by_itself() -> None:
    """The claim is then by image, whoever else is named: two images of one patient must not share a clip."""
    image = np.zeros((1, 8, 8), np.float32)
    named = [Case(image, f"a-{number}", patient="p", site="north", split="train") for number in range(2)]
    cases = CaseSet((*named, Case(image, "b", site="south", split="train")), ())
    assert cases.unit == "image"
    assert [len(unit) for unit in cases.by_patient().values()] == [1, 1, 1]
