"""The door to all data: a folder of sites, a DICOM tree, an npz or phantoms become one set of cases."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fedmedgen.data import phantoms
from fedmedgen.data.arrays import read_npz
from fedmedgen.data.cases import Case, CaseSet, Rejected
from fedmedgen.data.folders import Found, is_site, mask_values_seen, read_dicom, read_images, read_site
from fedmedgen.data.rejection import reject
from fedmedgen.data.tables import Row
from fedmedgen.errors import DataError
from fedmedgen.seeds import seed_of
from fedmedgen.settings import DataSettings

_log = logging.getLogger(__name__)


def load(settings: DataSettings, *, seed: int) -> CaseSet:
    """Every usable case at `data.root`, or phantoms where that is empty, each with its split.

    **Raises** `DataError` if nothing is there, or fewer than `data.min_patients` usable patients.

    **Guarantee** a bad file is named in `rejected` and touches no other; all images of a patient share a split.
    """
    cases = scan(settings, seed=seed)
    for bad in cases.rejected:
        _log.warning("set aside %s: %s", bad.file, bad.reason)
    require_enough(cases, settings)
    return cases


def scan(settings: DataSettings, *, seed: int) -> CaseSet:
    """As `load`, however few cases are left.

    **Raises** `DataError` if nothing is there at all.
    """
    if not settings.root:
        return _phantoms(settings, seed)
    found = _read(Path(settings.root).expanduser(), settings)
    _need_patients(found)
    classes = settings.classes or _classes(found.rows)
    cases, unknown = _label(found, classes)
    more = _unlabelled(settings)
    chosen = _only([*_with_splits(cases, settings.test_share, seed), *more.cases], settings.only)
    return CaseSet(tuple(chosen), classes, settings.mask_classes, (*found.rejected, *unknown, *more.rejected))


def read_own(settings: DataSettings, *, layout: str, mask_suffix: str) -> CaseSet:
    """A real site's training cases, each by itself: no case decides what becomes of another.

    `layout`, "images", "folders", "dicom" or "npz", is not guessed from what lies there, and without `settings.classes`
    no label is read.

    **Raises** `DataError` if nothing of that layout is there.
    """
    root = Path(settings.root).expanduser()
    found = Found()
    if layout == "npz" and root.is_file():
        found = read_npz(root, root.stem, settings)
    elif layout == "dicom" and root.is_dir():
        found = read_dicom(root, root.name, settings)
    elif layout in ("images", "folders") and root.is_dir():
        folders = [root] if layout == "images" else sorted(child for child in root.iterdir() if is_site(child))
        for folder in folders:
            found.add(read_images(folder, folder.name, settings, mask_suffix))
    else:
        raise DataError(f"expected data of layout {layout!r} at {root}; correct data_root or data_layout in the policy")
    rows = found.rows if settings.classes else [replace(row, number=None, name=None) for row in found.rows]
    cases, unknown = _label(replace(found, rows=rows), settings.classes)
    training = tuple(case for case in cases if case.split in ("", "train"))
    return CaseSet(training, settings.classes, settings.mask_classes, (*found.rejected, *unknown))


def guess_mask_classes(settings: DataSettings) -> tuple[str, ...]:
    """Names for the masks of a folder whose settings name none: background and as many others as a few masks hold."""
    root = Path(settings.root).expanduser()
    values = mask_values_seen(root) if root.is_dir() else set()
    if not values:
        return ()
    others = 1 if values <= {0, 255} or (max(values) > 127 and len(values) > 12) else max(1, len(values - {0}))
    return ("background", *(f"structure-{number + 1}" for number in range(others)))


def require_enough(cases: CaseSet, settings: DataSettings) -> None:
    """**Raises** `DataError` if fewer than `data.min_patients` patients (or images, without ids) are usable."""
    count = len(cases.by_patient())
    if count < settings.min_patients:
        first = "".join(f"\n  {bad.file}: {bad.reason}" for bad in cases.rejected[:5])
        more = f"\n  and {len(cases.rejected) - 5} more" if len(cases.rejected) > 5 else ""
        raise DataError(
            f"expected at least {settings.min_patients} usable {cases.unit}s (data.min_patients), got {count} with "
            f"{len(cases.rejected)} set aside: correct those or lower data.min_patients{first}{more}"
        )


def _unlabelled(settings: DataSettings) -> Found:
    """Radiographs of more sites, all for training, less what anybody wrote of them but the patient."""
    found = Found()
    for root in settings.unlabelled:
        found.add(_read(Path(root).expanduser(), replace(settings, mask_classes=())))
    _need_patients(found)
    found.cases = [replace(case, label=None, mask=None, split="train") for case in found.cases if case.split != "test"]
    return found


def _only(cases: list[Case], sites: tuple[str, ...]) -> list[Case]:
    there = {case.site for case in cases}
    if odd := sorted(set(sites) - there):
        raise DataError(f"data.only names {', '.join(odd)}; the sites are {', '.join(sorted(there))}: correct it")
    return [case for case in cases if case.site in sites] if sites else cases


def _read(root: Path, settings: DataSettings) -> Found:
    if root.is_file() and root.suffix.lower() == ".npz":
        return read_npz(root, root.stem, settings)
    if not root.is_dir():
        what = "a file of another kind" if root.exists() else "nothing"
        raise DataError(f"data.root: expected a folder or an npz at {root}, found {what}: correct data.root")
    found = read_site(root, root.resolve().name, settings) if is_site(root) else _read_sites(root, settings)
    if not found.cases and not found.rejected:
        raise DataError(
            f"data.root: no picture in {root}: expected SITE/images/*.png, images/*.png or DICOM files below it"
        )
    return found


def _read_sites(root: Path, settings: DataSettings) -> Found:
    """Children with images/ are sites; where there are none, the folder is one site's DICOM tree."""
    folders = sorted(child for child in root.iterdir() if child.is_dir() and not child.name.startswith("."))
    sites = [folder for folder in folders if is_site(folder)]
    if not sites:
        return read_site(root, root.resolve().name, settings)
    found = Found()
    for folder in folders:
        if folder not in sites:
            found.rejected.append(reject(folder.name, "folder-without-images"))
            continue
        found.add(read_site(folder, folder.name, settings))
    return found


def _need_patients(found: Found) -> None:
    """Set aside cases without a patient where others of their site name theirs: one privacy unit for all."""
    named = {case.site for case in found.cases if case.patient}
    both = list(zip(found.cases, found.rows, strict=True))
    kept = [(case, row) for case, row in both if case.patient or case.site not in named]
    found.rejected += [
        reject(f"{case.site}/{case.name}", "missing-patient")
        for case, _ in both
        if not case.patient and case.site in named
    ]
    found.cases, found.rows = [case for case, _ in kept], [row for _, row in kept]


def _classes(rows: Sequence[Row]) -> tuple[str, ...]:
    """Class names in the order of their numbers; where a file gives only numbers, the numbers as words."""
    numbers: dict[str, int] = {}
    for row in rows:
        name = _name(row)
        if name is not None:
            number = len(rows) if row.number is None else row.number
            numbers[name] = min(number, numbers.get(name, number))
    return tuple(sorted(numbers, key=lambda name: (numbers[name], name)))


def _name(row: Row) -> str | None:
    return row.name if row.name is not None or row.number is None else str(row.number)


def _label(found: Found, classes: tuple[str, ...]) -> tuple[list[Case], list[Rejected]]:
    """Cases with class numbers: by name where the file gives names, else by number."""
    cases: list[Case] = []
    unknown: list[Rejected] = []
    for case, row in zip(found.cases, found.rows, strict=True):
        name = _name(row)
        if name is None:
            cases.append(case)
        elif name in classes:
            cases.append(replace(case, label=classes.index(name)))
        elif row.name is None and row.number is not None and row.number < len(classes):
            cases.append(replace(case, label=row.number))
        else:
            file = f"{case.site}/{case.name}"
            unknown.append(reject(file, "unknown-class", got=name, expected=", ".join(classes)))
    return cases, unknown


def _with_splits(cases: Sequence[Case], test_share: float, seed: int) -> list[Case]:
    """Give cases without a split train or test: a share of each site's patients, drawn by the hash of their names."""
    units: dict[str, dict[str, None]] = {}
    unit_of = {id(case): case.patient or case.name for case in cases}
    for case in cases:
        if not case.split:
            units.setdefault(case.site, {})[unit_of[id(case)]] = None
    test: set[tuple[str, str]] = set()
    for site, names in units.items():
        count = max(1, round(test_share * len(names))) if test_share and len(names) > 1 else 0
        drawn = sorted((seed_of(seed, "split", site, name), name) for name in names)
        test |= {(site, name) for _, name in drawn[:count]}
    return [
        case if case.split else replace(case, split="test" if (case.site, unit_of[id(case)]) in test else "train")
        for case in cases
    ]


def _phantoms(settings: DataSettings, seed: int) -> CaseSet:
    """Phantoms of `data.sites` sites, each with a machine and people of its own."""
    spec = settings.phantoms
    classes = settings.classes or phantoms.classes_of(spec.anatomy)
    cases: list[Case] = []
    for number in range(1, settings.sites + 1):
        site = f"site-{number}"
        drawn = phantoms.draw(
            spec.anatomy,
            spec.patients_per_site,
            size=(settings.size[0], settings.size[1]),
            seed=phantoms.site_seed(seed, site),
            style=phantoms.site_style(seed, site),
            classes=classes,
            mask_classes=settings.mask_classes,
            images_per_patient=spec.images_per_patient,
        )
        cases += [replace(case, site=site, split="") for case in drawn]
    return CaseSet(tuple(_with_splits(cases, settings.test_share, seed)), classes, settings.mask_classes)
