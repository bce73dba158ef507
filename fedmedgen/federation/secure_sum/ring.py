"""Whole numbers modulo a power of 256: as arrays to reckon with, and as the bytes that travel."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmedgen.errors import ReplyError
from fedmedgen.schema import require

Numbers = NDArray[np.unsignedinteger[Any]]
Bytes = NDArray[np.uint8]
WRAPS = 2.0**-40  # the probability that any number of a sum passes the end of the ring, at most
WIDEST = 8  # bytes to a number


def width_for(largest: int) -> int:
    """Bytes to a number, so that all from -largest to largest are told apart."""
    width = math.ceil((2 * largest + 1).bit_length() / 8)
    require(width <= WIDEST, "the largest number of a sum", largest, f"one of {WIDEST} bytes")
    return width


def largest_sum(patients: int, largest_part: float, variance: float, length: int) -> int:
    """What no number of the noisy sum exceeds, but with probability `WRAPS`: all patients alike, and the noise's tail.

    **Source** Bernstein's inequality for a difference of Poisson numbers.
    """
    log = math.log(2 * length / WRAPS)
    return math.ceil(patients * largest_part + log / 3 + math.sqrt(log**2 / 9 + 2 * variance * log))


def dtype_of(width: int) -> type[np.unsignedinteger[Any]]:
    return np.uint32 if width <= 4 else np.uint64


def from_whole(values: NDArray[np.int64], width: int) -> Numbers:
    return values.astype(dtype_of(width))


def to_whole(numbers: Numbers, width: int) -> NDArray[np.int64]:
    """The representatives nearest to zero."""
    unused = np.int64(64 - 8 * width)
    centred: NDArray[np.int64] = numbers.astype(np.uint64).view(np.int64) << unused >> unused
    return centred


def pack(numbers: Numbers, width: int) -> Bytes:
    """The low bytes of each number, the lowest first."""
    each = numbers.dtype.newbyteorder("<")
    return np.ascontiguousarray(
        numbers.astype(each, copy=False).view(np.uint8).reshape(len(numbers), -1)[:, :width]
    ).ravel()


def unpack(packed: Bytes, width: int) -> Numbers:
    """**Raises** `ReplyError` where the bytes are no whole number of numbers."""
    if packed.dtype != np.uint8 or packed.ndim != 1 or len(packed) % width:
        raise ReplyError(f"expected numbers of {width} bytes each; got {packed.dtype} of shape {packed.shape}")
    each = np.dtype(dtype_of(width)).newbyteorder("<")
    wide = np.zeros((len(packed) // width, each.itemsize), np.uint8)
    wide[:, :width] = packed.reshape(-1, width)
    return wide.view(each).ravel().astype(dtype_of(width), copy=False)
