"""Little sets of drawn cases: a bright disc, left or right, with its mask."""

from collections.abc import Callable

import numpy as np
import pytest

from fedmedgen.data.cases import Case, CaseSet

CLASSES = ("left", "right")
MASKS = ("background", "disc")


def disc(label: int, number: int, draw: np.random.Generator, size: int = 16) -> Case:
    rows, columns = np.mgrid[:size, :size]
    centre = size * (0.3 if label == 0 else 0.7) + draw.normal(0, 0.5)
    mask = (rows - size / 2 + draw.normal(0, 1)) ** 2 + (columns - centre) ** 2 < (size / 5) ** 2
    image = (-0.5 + mask + 0.1 * draw.standard_normal((size, size))).astype(np.float32)
    patient = f"p{number // 2}"
    return Case(image=image[None], name=f"{number}.png", label=label, mask=mask.astype(np.uint8), patient=patient)


@pytest.fixture(scope="session")
def discs() -> Callable[..., CaseSet]:
    def make(count: int, seed: int = 0) -> CaseSet:
        draw = np.random.default_rng(seed)
        return CaseSet(tuple(disc(number % 2, number, draw) for number in range(count)), CLASSES, MASKS)

    return make
