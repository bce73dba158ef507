"""What the server checks in each reply before it counts, and the norm of an update."""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fedmedgen.errors import EgressError, ReplyError
from fedmedgen.federation.egress import check_arrays


def update_norm(arrays: Mapping[str, NDArray[np.float32]], reference: Mapping[str, NDArray[np.float32]]) -> float:
    """l2 norm of `arrays - reference`, over all arrays together."""
    squares = (float(np.sum(np.square(arrays[key].astype(np.float64) - reference[key]))) for key in sorted(arrays))
    return math.sqrt(sum(squares))


def check_reply(
    arrays: Mapping[str, NDArray[np.float32]], reference: Mapping[str, NDArray[np.float32]], *, max_norm: float
) -> float:
    """The norm of a usable update.

    **Raises** `ReplyError` for other names, shapes or types than the reference, a value that isn't finite, or a norm
    above `max_norm`.
    """
    try:
        check_arrays(arrays, {key: value.shape for key, value in reference.items()})
    except EgressError as error:
        raise ReplyError(str(error)) from error
    for key, value in arrays.items():
        if not np.isfinite(value).all():
            raise ReplyError(f"{key} has values that are not finite")
    norm = update_norm(arrays, reference)
    if norm > max_norm:
        raise ReplyError(f"the update's norm is {norm:.3g}; federation.max_update_norm is {max_norm:g}")
    return norm
