"""Exponential moving average of weights."""

from collections.abc import Mapping

from torch import Tensor


def ema(old: Mapping[str, Tensor], new: Mapping[str, Tensor], decay: float) -> dict[str, Tensor]:
    """`decay` of the old weights and the rest of the new, in the new weights' types."""
    return {name: (decay * old[name].double() + (1 - decay) * value.double()).to(value) for name, value in new.items()}
