"""What the numbers of labels and masks mean, said to a generator that knows only how many there are."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

from fedmedgen.errors import SettingsError


class Named(Protocol):
    """A frozen config with the names of the classes, and of the masks, background first."""

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def mask_classes(self) -> tuple[str, ...]: ...


T = TypeVar("T", bound=Named)


def named(config: T, classes: Sequence[str], mask_classes: Sequence[str]) -> T:
    """The config with these names.

    **Raises** `SettingsError` if their count is another.
    """
    masks = tuple(mask_classes) if config.mask_classes else ()
    if len(classes) != len(config.classes) or len(masks) != len(config.mask_classes):
        raise SettingsError(
            f"the generator has {len(config.classes)} classes and {len(config.mask_classes)} mask classes;"
            f" got the names {list(classes)} and {list(mask_classes)}"
        )
    return replace(config, classes=tuple(classes), mask_classes=masks)  # type: ignore[type-var]


def numbered(num_classes: int, num_masks: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of classes and masks that nobody has named; `num_masks` counts mask classes less the background."""
    classes = tuple(f"class-{label}" for label in range(num_classes))
    return classes, ("background", *(f"mask-{value + 1}" for value in range(num_masks))) if num_masks else ()
