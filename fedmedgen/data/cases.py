"""A case, a set of cases, and the glossary of shapes that the whole package uses.

**Shapes**
    B  cases in a batch, or rows (a patient's images x noise draws)
    C  channels: 1 for the image, plus one for each mask class but the background
    H, W  rows and columns of pixels, top left first
    M  mask classes, background included
    image  ``[1, H, W]`` float32 in [-1, 1], -1 is black (air), 1 is white (bone)
    images ``[B, 1, H, W]``; masks ``[B, H, W]`` uint8, values 0 (background) .. M - 1
    mask channels ``[B, M - 1, H, W]`` float32, -1 absent, 1 present
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
MaskArray = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Case:
    """One radiograph: what is drawn, whose it is, where it was taken."""

    image: FloatArray
    name: str
    label: int | None = None
    mask: MaskArray | None = None
    patient: str | None = None
    site: str = ""
    split: str = ""


@dataclass(frozen=True)
class Rejected:
    """A file that was set aside, and why; `kind` is a word from `data.rejection.KINDS`."""

    file: str
    kind: str
    reason: str


@dataclass(frozen=True, eq=False)
class CaseSet:
    """Cases with the names of their classes.

    `classes[label]` and `mask_classes[value]` name what the numbers mean; `mask_classes[0]` is the background.
    `unit` is "patient" if every case names its patient, else "image".
    """

    cases: tuple[Case, ...]
    classes: tuple[str, ...]
    mask_classes: tuple[str, ...] = ()
    rejected: tuple[Rejected, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.cases)

    def __iter__(self) -> Iterator[Case]:
        return iter(self.cases)

    @property
    def unit(self) -> str:
        return "patient" if all(case.patient for case in self.cases) else "image"

    @property
    def sites(self) -> tuple[str, ...]:
        return tuple(sorted({case.site for case in self.cases}))

    def with_cases(self, cases: Sequence[Case]) -> "CaseSet":
        """The same classes with other cases."""
        return replace(self, cases=tuple(cases), rejected=())

    def of_site(self, site: str) -> "CaseSet":
        return self.with_cases([case for case in self.cases if case.site == site])

    def of_split(self, split: str) -> "CaseSet":
        return self.with_cases([case for case in self.cases if case.split == split])

    def by_patient(self) -> dict[str, tuple[Case, ...]]:
        """Cases of each privacy unit, in the order of first appearance: patient, or case where ids are missing.

        Patients of different sites are different units; where any id is missing every case is its own unit.
        """
        groups: dict[str, list[Case]] = {}
        whole = self.unit == "patient"
        for number, case in enumerate(self.cases):
            key = f"{case.site}/{case.patient}" if whole else f"{case.site}/{case.name}#{number}"
            groups.setdefault(key, []).append(case)
        return {key: tuple(members) for key, members in groups.items()}

    def images(self) -> FloatArray:
        """All images ``[B, 1, H, W]``."""
        return np.stack([case.image for case in self.cases]) if self.cases else np.zeros((0, 1, 1, 1), np.float32)
