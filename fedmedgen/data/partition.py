"""Who holds which training cases: the natural sites, or a drawn partition; always by patient."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from fedmedgen.data import sources
from fedmedgen.data.cases import Case, CaseSet
from fedmedgen.errors import DataError, SettingsError
from fedmedgen.seeds import seed_of
from fedmedgen.settings import DataSettings

Unit = tuple[Case, ...]
_TRIES = 100
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Held:
    """The cases of a study, and which training cases each site holds."""

    loaded: CaseSet
    parts: Mapping[str, CaseSet]


@lru_cache(maxsize=2)
def held(data: DataSettings, seed: int) -> Held:
    """The study's cases and each site's share of them, read once a process."""
    loaded = sources.load(data, seed=seed)
    return Held(loaded, partition(loaded, data, seed=seed))


def partition(cases: CaseSet, data: DataSettings, *, seed: int) -> dict[str, CaseSet]:
    """Each site's training cases, by site name in sorted order, of at most `data.max_patients` patients.

    **Guarantee** all images of a patient are at one site; every site has at least `data.min_patients` patients (a
    natural site with fewer is left out, and said so); no case outside the training split is touched.

    **Raises** `DataError` if that can't be reached.
    """
    train = _with_rare_class(cases.of_split("train"), data, seed)
    if data.partition == "natural":
        kept = [_capped(part, data.max_patients) for part in _natural(train, data.min_patients).values()]
        few = _with_few_masks(train.with_cases([case for part in kept for case in part]), data)
        return {name: few.of_site(name) for name in few.sites}
    train = _with_few_masks(train, data)
    units = _units(train)
    units = [tuple(replace(one, patient=one.patient and f"{one.site}/{one.patient}") for one in unit) for unit in units]
    if len(units) < data.sites * data.min_patients:
        raise DataError(
            f"expected at least {data.min_patients} {train.unit}s for each of {data.sites} sites, got {len(units)} in "
            "all: lower data.sites or data.min_patients"
        )
    owners = _owners(units, len(train.classes), data, seed)
    width = len(str(data.sites))
    parts = {}
    for number in range(data.sites):
        site = f"site-{number + 1:0{width}d}"
        mine = [case for unit, owner in zip(units, owners, strict=True) if owner == number for case in unit]
        parts[site] = train.with_cases([replace(case, site=site) for case in _unique(mine)])
    taken = _largest(parts, data.largest_sites)
    return {name: _capped(taken[name], data.max_patients) for name in sorted(taken)}


def _largest(parts: Mapping[str, CaseSet], count: int) -> dict[str, CaseSet]:
    """So many of the sites, those with the most patients; of as many patients the first by name."""
    ranked = sorted(parts, key=lambda name: (-len(parts[name].by_patient()), name))
    return {name: parts[name] for name in ranked[: count or None]}


def _units(train: CaseSet) -> list[Unit]:
    """What stays together, in the order of first appearance: patients where their site names them all, else cases."""
    named = {site for site in train.sites if train.of_site(site).unit == "patient"}
    groups: dict[tuple[str, object], list[Case]] = {}
    for number, case in enumerate(train):
        groups.setdefault((case.site, case.patient if case.site in named else number), []).append(case)
    return [tuple(members) for members in groups.values()]


def _with_rare_class(train: CaseSet, data: DataSettings, seed: int) -> CaseSet:
    """The training cases with all but a few patients of one class left out, drawn by the hash of their names.

    A patient is of that class if any of her images is.
    """
    if not data.rare_class:
        return train
    if data.rare_class not in train.classes:
        known = ", ".join(train.classes) or "none"
        raise SettingsError(f"data.rare_class must be one of the classes ({known}); got {data.rare_class!r}")
    label = train.classes.index(data.rare_class)
    patients = train.by_patient()
    theirs = [name for name, unit in patients.items() if any(case.label == label for case in unit)]
    kept = min(data.rare_patients or max(1, round(data.rare_share * len(theirs))), len(theirs))
    drawn = sorted(theirs, key=lambda name: (seed_of(seed, "rare", name), name))
    left_out = set(drawn[kept:])
    _log.info("%d of %d %ss with %s are left in training", kept, len(theirs), train.unit, data.rare_class)
    return train.with_cases([case for name, unit in patients.items() if name not in left_out for case in unit])


def _with_few_masks(train: CaseSet, data: DataSettings) -> CaseSet:
    """The training cases, of whom `data.labelled` patients keep their masks, drawn by the hash of their names."""
    if data.labelled < 0:
        return train
    units = train.by_patient()
    theirs = [
        name for name, unit in units.items()
        if any(case.mask is not None for case in unit) and unit[0].site in (data.labelled_sites or (unit[0].site,))
    ]  # fmt: skip
    if len(theirs) < data.labelled:
        raise DataError(f"data.labelled asks for masks of {data.labelled} patients; {len(theirs)} have one: ask fewer")
    drawn = set(sorted(theirs, key=lambda name: (seed_of(data.labelled_draw, "labelled", name), name))[: data.labelled])
    return train.with_cases(
        [case if name in drawn else replace(case, mask=None) for name, unit in units.items() for case in unit]
    )


def _capped(cases: CaseSet, most: int) -> CaseSet:
    kept = list(cases.by_patient().values())[: most or None]
    return cases.with_cases([case for patient in kept for case in patient])


def _natural(train: CaseSet, least: int) -> dict[str, CaseSet]:
    parts: dict[str, CaseSet] = {}
    for site in train.sites:
        part = train.of_site(site)
        count = len(part.by_patient())
        if count >= least:
            parts[site] = part
        else:
            _log.warning("site %s is left out: %d training %ss, fewer than %d", site, count, train.unit, least)
    if not parts:
        raise DataError(
            f"no site has {least} {train.unit}s to train on (data.min_patients): got "
            + (", ".join(f"{site} {len(train.of_site(site).by_patient())}" for site in train.sites) or "no case")
            + "; lower data.min_patients or give more cases"
        )
    return parts


def _unique(cases: Sequence[Case]) -> list[Case]:
    """Cases renamed to origin/name where two original sites use one file name."""
    uses = Counter(case.name for case in cases)
    return [replace(case, name=f"{case.site}/{case.name}") if uses[case.name] > 1 else case for case in cases]


def _owners(units: Sequence[Unit], num_classes: int, data: DataSettings, seed: int) -> list[int]:
    """The number of the site that gets each patient."""
    for attempt in range(_TRIES):
        rng = np.random.default_rng(seed_of(seed, "partition", data.partition, attempt))
        if data.partition == "dirichlet":
            owners = _dirichlet(units, num_classes, data, rng)
        else:
            shares = data.shares if data.partition == "by-size" else (1.0,) * data.sites
            owners = _by_shares(len(units), _checked(shares, data.sites), rng)
        if np.bincount(owners, minlength=data.sites).min() >= data.min_patients:
            return [int(owner) for owner in owners]
    raise DataError(
        f"no {data.partition} partition into {data.sites} sites gave each at least {data.min_patients} patients in "
        f"{_TRIES} tries: lower data.sites or data.min_patients, or raise data.alpha"
    )


def _checked(shares: Sequence[float], sites: int) -> np.ndarray:
    if len(shares) != sites or min(shares, default=0.0) <= 0:
        raise SettingsError(
            f"data.shares must be {sites} numbers above 0, one for each of data.sites; got {list(shares)!r}"
        )
    return np.asarray(shares, float) / sum(shares)


def _by_shares(count: int, shares: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Patients shuffled, then cut at the shares."""
    owners = np.empty(count, int)
    bounds = np.round(np.cumsum(shares) * count).astype(int)
    owners[rng.permutation(count)] = np.searchsorted(bounds, np.arange(count), side="right")
    return owners


def _dirichlet(units: Sequence[Unit], num_classes: int, data: DataSettings, rng: np.random.Generator) -> np.ndarray:
    """Each label's patients spread over the sites by shares from Dirichlet(alpha); the label is the first image's."""
    labels = np.array([-1 if unit[0].label is None else unit[0].label for unit in units])
    owners = np.empty(len(units), int)
    for label in range(-1, num_classes):
        chosen = np.flatnonzero(labels == label)
        if len(chosen):
            shares = np.maximum(rng.dirichlet([data.alpha] * data.sites), 1e-12)
            owners[chosen] = _by_shares(len(chosen), shares / shares.sum(), rng)
    return owners
