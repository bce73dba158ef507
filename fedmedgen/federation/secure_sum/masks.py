"""Masks: as many numbers of the ring as a vector has, from a key of 32 bytes."""

from collections.abc import Iterable

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from fedmedgen.federation.secure_sum.ring import Numbers, dtype_of


def mask(key: bytes, length: int, width: int) -> Numbers:
    """Numbers of AES-256-CTR's keystream under a key that is used for nothing else."""
    kind = np.dtype(dtype_of(width)).newbyteorder("<")
    stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor().update(bytes(length * kind.itemsize))
    return np.frombuffer(stream, kind).astype(dtype_of(width), copy=False)


def added(numbers: Numbers, masks: Iterable[tuple[bytes, bool]], width: int) -> Numbers:
    """The numbers with the masks of some keys added, or where the word is False taken off."""
    total = numbers.copy()
    for key, adds in masks:
        one = mask(key, len(total), width)
        total = np.add(total, one, out=total) if adds else np.subtract(total, one, out=total)
    return total
