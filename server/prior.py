"""Public images at the server: what the basis is made of, and what the release lacks. No site is asked for them."""

import logging
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from fedmedgen.data import phantoms, sources
from fedmedgen.data.cases import Case
from fedmedgen.errors import SettingsError
from fedmedgen.federation.local_statistics import masks_of
from fedmedgen.seeds import seed_of
from fedmedgen.settings import DataSettings, Settings
from fedmedgen.training.rows import encode

logger = logging.getLogger(__name__)


def public_images(settings: Settings) -> Tensor:
    """Public radiographs and phantoms as the generator sees images, ``[B, C, H, W]``; B is 0 where there are none.

    Where the study has masks, only images with masks of its classes serve.
    """
    masks = masks_of(settings)
    cases = [case for root in settings.prior.roots for case in _radiographs(root, settings, masks)]
    if settings.prior.phantoms:
        data = replace(settings.data, mask_classes=masks)
        seed = seed_of(settings.seed, "public")
        cases += phantoms.prior(settings.prior.phantoms, data=data, classes=settings.data.classes, seed=seed)
    if not cases:
        return torch.zeros(0, max(1, len(masks)), *settings.data.size)
    return encode(cases, masks)


def _radiographs(root: str, settings: Settings, masks: tuple[str, ...]) -> list[Case]:
    """**Raises** `SettingsError` if the folder is the study's own, which would be a leak without noise."""
    asked, own = settings.data, Path(settings.data.root or "/").resolve()
    place = Path(root).resolve()
    if settings.data.root and (place.is_relative_to(own) or own.is_relative_to(place)):
        raise SettingsError(f"prior.roots must not hold the study's own radiographs: {root} and data.root overlap")
    data = DataSettings(
        root=root, columns=asked.columns, mask_classes=masks, size=asked.size, fit=asked.fit, min_patients=1
    )
    cases = [case for case in sources.load(data, seed=settings.seed) if case.mask is not None or not masks]
    logger.info("prior: %d public images of %s", len(cases), place.name)
    return cases
