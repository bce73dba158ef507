"""Canaries that are images: patterns that no radiograph resembles, each a patient of its own."""

from collections.abc import Sequence

import numpy as np

from fedmedgen.data.cases import Case

SITE = "(canaries)"  # no site can have this name
BLOCKS = 7  # along a side


def crafted(count: int, *, seed: int, num_classes: int, num_masks: int, size: tuple[int, int]) -> list[Case]:
    """Black and white blocks at random, with a random class and, for `num_masks` above 1, a mask of random blocks.

    The same for the same seed. With a mask, so that they count wherever a case without one would teach nothing.
    """
    draw = np.random.default_rng(seed)
    return [_one(number, draw, num_classes, num_masks, size) for number in range(count)]


def is_crafted(patient: Sequence[Case]) -> bool:
    """Whether a patient is made up: such a one enters the sums oversized, before the clip."""
    return patient[0].site == SITE


def some_of(cases: Sequence[Case], included: Sequence[int]) -> list[Case]:
    """Those whose coin came up."""
    return [case for case, coin in zip(cases, included, strict=True) if coin]


def _one(number: int, draw: np.random.Generator, num_classes: int, num_masks: int, size: tuple[int, int]) -> Case:
    height, width = size
    blocks = draw.choice(np.array([-1, 1], np.float32), (BLOCKS, BLOCKS))
    rows, columns = (np.arange(side) * BLOCKS // side for side in (height, width))
    label = int(draw.integers(num_classes)) if num_classes else None
    mask = None
    if num_masks > 1:
        mask = draw.integers(num_masks, size=(BLOCKS, BLOCKS), dtype=np.uint8)[np.ix_(rows, columns)]
    name = f"canary-{number:04d}"
    return Case(image=blocks[np.ix_(rows, columns)][None], mask=mask, label=label, patient=name, site=SITE, name=name)
