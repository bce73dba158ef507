"""Sets and settings that can't be used at all: refused with the words of docs/bad-input.md."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedmedgen.data import partition, sources
from fedmedgen.data.rejection import KINDS
from fedmedgen.errors import DataError, FedmedgenError, SettingsError
from fedmedgen.settings import Settings

SECTION = "Sets and settings"


def _load(root: Path, **data: Any) -> None:
    settings = Settings.from_mapping({"data": {"root": str(root), "min_patients": 1, **data}}).data
    partition.partition(sources.load(settings, seed=0), settings, seed=0)


def no_such_root(root: Path) -> None:
    """data.root names nothing"""
    _load(root / "chets")


def root_of_another_kind(root: Path) -> None:
    """data.root is a file, but no npz"""
    _load(root / "north" / "labels.csv")


def no_pictures(root: Path) -> None:
    """data.root is a folder without pictures"""
    (root / "hollow").mkdir()
    _load(root / "hollow")


def too_few_patients(root: Path) -> None:
    """4 good pictures and an empty one, where 8 patients are asked for"""
    (root / "north" / "images" / "a.png").write_bytes(b"")
    _load(root, min_patients=8)


def too_few_for_the_sites(root: Path) -> None:
    """4 patients for 3 even sites of 2"""
    _load(root, partition="even", sites=3, min_patients=2)


def no_site_with_enough(root: Path) -> None:
    """a site whose training share is below data.min_patients"""
    table = root / "north" / "labels.csv"
    table.write_text(table.read_text().replace("p0,train", "p0,test"))
    _load(root, min_patients=4)


def no_such_partition(root: Path) -> None:
    """by-size sites so unequal that one stays empty"""
    _load(root, partition="by-size", sites=2, shares=[0.99, 0.01])


def shares_and_sites_differ(root: Path) -> None:
    """two shares for three sites"""
    _load(root, partition="by-size", sites=3, shares=[0.5, 0.5])


def unknown_setting(root: Path) -> None:
    """data.sise=[64,64]"""
    _load(root, sise=[64, 64])


def setting_of_another_type(root: Path) -> None:
    """data.sites=three"""
    _load(root, sites="three")


def setting_out_of_range(root: Path) -> None:
    """data.alpha=0"""
    _load(root, alpha=0)


def setting_not_among_the_choices(root: Path) -> None:
    """data.fit=crop"""
    _load(root, fit="crop")


def size_too_small(root: Path) -> None:
    """data.size=[4,64]"""
    _load(root, size=[4, 64])


def one_mask_class(root: Path) -> None:
    """data.mask_classes=[lung]"""
    _load(root, mask_classes=["lung"])


ABOUT_SETTINGS = (
    shares_and_sites_differ,
    unknown_setting,
    setting_of_another_type,
    setting_out_of_range,
    setting_not_among_the_choices,
    size_too_small,
    one_mask_class,
)
ABOUT_SETS = (
    no_such_root,
    root_of_another_kind,
    no_pictures,
    too_few_patients,
    too_few_for_the_sites,
    no_site_with_enough,
    no_such_partition,
)
MAKERS: dict[str, Callable[[Path], None]] = {
    make.__name__.replace("_", "-"): make for make in (*ABOUT_SETS, *ABOUT_SETTINGS)
}


@pytest.mark.parametrize("kind", MAKERS)
def test_a_set_or_setting_that_cannot_be_used_is_refused_in_the_documented_words(kind, site, documented):
    expected = SettingsError if MAKERS[kind] in ABOUT_SETTINGS else DataError
    with pytest.raises(FedmedgenError) as caught:
        MAKERS[kind](site.parent)
    assert type(caught.value) is expected
    said = str(caught.value).replace(str(site.parent), "DIR").replace("\n ", "")
    assert (MAKERS[kind].__doc__, said) == documented[SECTION][kind]


def test_every_documented_kind_of_bad_set_is_made_here(documented):
    assert set(documented[SECTION]) == set(MAKERS)


def test_every_kind_that_a_loader_knows_is_documented_once(documented):
    kinds = [kind for title, rows in documented.items() if title != SECTION for kind in rows]
    assert sorted(kinds) == sorted(KINDS)
