"""Procedural radiographs with exact masks and classes, from a seed: a set to try, and a prior that costs no privacy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Literal, TypedDict, Unpack

import numpy as np

from fedmedgen.data import chest, panoramic
from fedmedgen.data.cases import Case, CaseSet, FloatArray, MaskArray
from fedmedgen.data.film import PhantomStyle, expose
from fedmedgen.seeds import seed_of
from fedmedgen.settings import DataSettings

__all__ = [
    "PRIOR_STYLE",
    "STANDS_FOR",
    "PhantomStyle",
    "classes_of",
    "draw",
    "mask_classes_of",
    "prior",
    "site_seed",
    "site_style",
]

Anatomy = Literal["chest", "panoramic"]

PRIOR_STYLE = PhantomStyle(name="prior")
STANDS_FOR = {  # public names of findings, and the phantom finding that looks most like them
    "healthy": "normal",
    "no finding": "normal",
    "pneumonia": "opacity",
    "tuberculosis": "opacity",
    "covid": "opacity",
    "consolidation": "opacity",
    "infiltration": "opacity",
    "mass": "nodule",
    "decay": "caries",
}
_PIXELS_AT_ONCE = 65536  # what a processor keeps close
_PARTS: Mapping[str, ModuleType] = {"chest": chest, "panoramic": panoramic}


class Names(TypedDict, total=False):
    """Names and counts that a drawing may be given: None or absent means all that the anatomy has."""

    classes: Sequence[str] | None
    mask_classes: Sequence[str] | None
    images_per_patient: int  # 1 to this many films of each patient


@dataclass(frozen=True)
class _Plan:
    """What each film shows: whose it is, its finding, its label, and how mask values are renumbered."""

    patients: np.ndarray
    kinds: list[str]
    labels: list[int | None]
    mask_values: MaskArray | None


def classes_of(anatomy: Anatomy) -> tuple[str, ...]:
    """The findings that phantoms of this anatomy show."""
    return tuple(_PARTS[anatomy].CLASSES)


def mask_classes_of(anatomy: Anatomy) -> tuple[str, ...]:
    """The structures that masks of this anatomy name, background first."""
    return tuple(_PARTS[anatomy].MASK_CLASSES)


def site_seed(seed: int, name: str) -> int:
    """The seed of a site's phantoms: no two sites, and no site and the prior, share one."""
    return seed_of(seed, "phantoms", name)


def site_style(seed: int, name: str) -> PhantomStyle:
    """The machine and the people of a site: drawn from the seed, always apart from the prior's."""
    rng = np.random.default_rng(seed_of(seed, "phantoms", "style", name))

    def away(size: float) -> float:
        return float(rng.choice([-1, 1]) * rng.uniform(0.4, 1.0) * size)

    return PhantomStyle(
        name=name,
        exposure=away(0.06),
        contrast=1 + away(0.18),
        toe=0.25 + away(0.15),
        blur=0.016 + away(0.007),
        noise=0.020 + away(0.009),
        habitus=away(0.8),
        marker=float(rng.uniform(0, 1)),
    )


def draw(
    anatomy: Anatomy,
    count: int,
    *,
    size: tuple[int, int],
    seed: int,
    style: PhantomStyle = PRIOR_STYLE,
    **names: Unpack[Names],
) -> list[Case]:
    """Phantoms of `count` patients, one film each unless `images_per_patient` says more.

    **Guarantee** the same arguments give the same cases; another size gives the same anatomy.
    """
    part = _PARTS[anatomy]
    rng = np.random.default_rng(seed_of(seed, "phantoms", anatomy))
    plan = _plan(part, count, rng, names)
    numbers = _numbers(part, count, plan.patients, rng)
    numbers["marker"] = np.where(numbers["marker"] < style.marker, 1.0, -1.0).astype(np.float32)
    textures = part.Textures(size, np.random.default_rng(seed_of(seed, "phantoms", "textures")))
    grain = np.random.default_rng(seed_of(seed, "phantoms", "grain"))
    cases: list[Case] = []
    at_once = 2 * max(1, _PIXELS_AT_ONCE // (2 * size[0] * size[1]))
    for start in range(0, len(plan.patients), at_once):
        films = slice(start, start + at_once)
        some = {name: values[films] for name, values in numbers.items()}
        thickness, masks = part.render(some, plan.kinds[films], textures, style.habitus)
        images = expose(thickness, style, some["gain"][:, None, None], grain)
        cases.extend(_cases(plan, start, images, masks))
    return cases


def prior(count: int, *, data: DataSettings, classes: Sequence[str], seed: int) -> CaseSet:
    """Phantoms of the prior's style in the study's size, with the study's classes and masks.

    A class that phantoms don't know takes the finding of `STANDS_FOR`; where none fits, films carry no label.
    """
    cases = draw(
        data.phantoms.anatomy,
        count,
        size=(data.size[0], data.size[1]),
        seed=seed_of(seed, "prior"),
        classes=classes,
        mask_classes=data.mask_classes,
    )
    return CaseSet(tuple(cases), tuple(classes), data.mask_classes)


def _plan(part: ModuleType, count: int, rng: np.random.Generator, names: Names) -> _Plan:
    wanted = names.get("classes")
    wanted = tuple(part.CLASSES) if wanted is None else tuple(wanted)
    label_of: dict[str, int] = {}
    for label, name in enumerate(wanted):
        finding = name if name in part.CLASSES else STANDS_FOR.get(name.lower(), "")
        if finding in part.CLASSES:
            label_of.setdefault(finding, label)
    kinds = list(label_of) or list(part.CLASSES)
    mix = np.array([part.MIX[kind] for kind in kinds])
    chosen = rng.choice(len(kinds), count, p=mix / mix.sum())
    films = rng.integers(1, names.get("images_per_patient", 1) + 1, count)
    patients = np.repeat(np.arange(count), films)
    shown = [kinds[number] for number in chosen[patients]]
    labels = [label_of.get(kind) for kind in shown]
    return _Plan(patients, shown, labels, _mask_values(part, names.get("mask_classes")))


def _mask_values(part: ModuleType, wanted: Sequence[str] | None) -> MaskArray | None:
    """The new value of each of the anatomy's mask values; a structure that isn't wanted becomes what surrounds it."""
    if wanted is None:
        return np.arange(len(part.MASK_CLASSES), dtype=np.uint8)
    if len(wanted) == 0:
        return None
    values = [0]
    for name in part.MASK_CLASSES[1:]:
        values.append(wanted.index(name) if name in wanted else values[-1])
    return np.array(values, np.uint8)


def _numbers(part: ModuleType, count: int, patients: np.ndarray, rng: np.random.Generator) -> dict[str, FloatArray]:
    def drawn(bounds: tuple[float, ...], rows: int) -> np.ndarray:
        return rng.uniform(bounds[0], bounds[1], rows if len(bounds) == 2 else (rows, int(bounds[2])))

    body = {name: drawn(bounds, count)[patients] for name, bounds in part.BODY.items()}
    pose = {name: drawn(bounds, len(patients)) for name, bounds in part.POSE.items()}
    return {name: values.astype(np.float32) for name, values in {**body, **pose}.items()}


def _cases(plan: _Plan, start: int, images: FloatArray, masks: MaskArray) -> list[Case]:
    if plan.mask_values is not None:
        masks = plan.mask_values[masks]
    return [
        Case(
            image=images[row][None].copy(),
            name=f"phantom-{start + row:06d}.png",
            label=plan.labels[start + row],
            mask=None if plan.mask_values is None else masks[row].copy(),
            patient=f"p{plan.patients[start + row]:06d}",
            split="train",
        )
        for row in range(len(images))
    ]
