"""Public images at the server: what the basis is made of, and what the release lacks. No site is asked for them."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedmedgen.data import phantoms, sources
from fedmedgen.data.cases import Case, CaseSet, FloatArray
from fedmedgen.errors import SettingsError
from fedmedgen.federation.local_statistics import masks_of
from fedmedgen.seeds import seed_of
from fedmedgen.settings import DataSettings, Settings
from fedmedgen.training.rows import encode
from fedmedgen.training.variation import varied_cases

SAME = 0.99  # the nearest of 5,856 children and 857 adults at 28x28 have 0.947
logger = logging.getLogger(__name__)


def as_images(settings: Settings, cases: Sequence[Case]) -> Tensor:
    """Public cases as the generator sees images, ``[B, C, H, W]``; B is 0 where there are none."""
    masks = masks_of(settings)
    return encode(cases, masks) if cases else torch.zeros(0, max(1, len(masks)), *settings.data.size)


def public_cases(settings: Settings, private: CaseSet | None = None) -> list[Case]:
    """Public radiographs, without labels, and phantoms of the study's classes.

    Where the study has masks, only images with masks of its classes serve. `private` are the study's own cases, where
    a simulation has them at hand.

    **Raises** `SettingsError` for radiographs of the study itself: the basis, texture and exposure taken from them
    would leak without noise. In a deployment nobody can check that; that they are public is the operator's word. And
    for a class of masks that no public image shows, where what is drawn has its masks from them.
    """
    masks = masks_of(settings)
    cases = [case for root in settings.prior.roots for case in _radiographs(root, settings, masks)]
    if private is not None and len(private) and cases:
        _refuse_the_studys_own(cases, private)
    if settings.prior.phantoms:
        data = replace(settings.data, mask_classes=masks)
        seed = seed_of(settings.seed, "public")
        cases += phantoms.prior(settings.prior.phantoms, data=data, classes=settings.data.classes, seed=seed)
    if settings.prior.varied:
        cases = varied_cases(cases, seed_of(settings.seed, "varied"))
    if cases and settings.statistics.share and (settings.statistics.basis == "pca" or settings.prior.nearest):
        _refuse_masks_of_nothing(cases, settings, masks)
    return cases


def _radiographs(root: str, settings: Settings, masks: tuple[str, ...]) -> list[Case]:
    asked, own = settings.data, Path(settings.data.root or "/").expanduser().resolve()
    place = Path(root).expanduser().resolve()
    if settings.data.root and (place.is_relative_to(own) or own.is_relative_to(place)):
        raise SettingsError(f"prior.roots must not hold the study's own radiographs: {root} and data.root overlap")
    data = DataSettings(
        root=root, columns=asked.columns, mask_classes=masks, size=asked.size, fit=asked.fit, min_patients=1
    )
    found = sources.load(data, seed=settings.seed)
    cases = [replace(case, label=None) for case in found if case.mask is not None or not masks]
    logger.info("prior: %d public images of %s", len(cases), place.name)
    return cases


def _refuse_masks_of_nothing(public: Sequence[Case], settings: Settings, masks: tuple[str, ...]) -> None:
    """A class that neither a component of public images nor the nearest of them has is drawn nowhere."""
    shown = {int(value) for case in public if case.mask is not None for value in np.unique(case.mask)}
    if missing := [name for value, name in enumerate(masks) if value and value not in shown]:
        known = ", ".join(phantoms.mask_classes_of(settings.data.phantoms.anatomy)[1:])
        raise SettingsError(
            "data.mask_classes must name what public images show, for drawn masks come from there; none of "
            f"{len(public)} shows {', '.join(map(repr, missing))}: phantoms know {known}; take such a name, add a "
            "folder with those masks to prior.roots, or set statistics.basis=cosine and prior.nearest=false"
        )


def _refuse_the_studys_own(public: Sequence[Case], private: CaseSet) -> None:
    """Whatever the files are called, and however bright they are: by the correlation of their pixels."""
    own, other = (_directions(np.stack([case.image for case in cases])) for cases in (private, public))
    for case, likeness in zip(public, (other @ own.T).max(dim=1).values.tolist(), strict=True):
        if likeness > SAME:
            raise SettingsError(
                f"prior.roots must not hold the study's own radiographs: {case.name} of {case.site} is one of them, or "
                f"as good as one (correlation {likeness:.3f}); other people's correlate below {SAME}"
            )


def _directions(images: FloatArray) -> Tensor:
    """Each image less its mean, of length 1: ``[B, pixels]``."""
    pixels = torch.from_numpy(images).flatten(1)
    return torch.nn.functional.normalize(pixels - pixels.mean(dim=1, keepdim=True), dim=1)
