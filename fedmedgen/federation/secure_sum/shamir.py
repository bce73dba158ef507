"""Shares of a secret of 32 bytes, of which any `threshold` give it back and fewer tell nothing.

Flower's own sits on a cipher library that isn't a dependency, splits a secret into blocks, and checks no share.

**Source** Shamir 1979.
"""

import secrets
from collections.abc import Mapping

from fedmedgen.errors import ReplyError

PRIME = 2**256 + 297  # the least above all secrets
SECRET_BYTES = 32


def split(secret: bytes, threshold: int, points: int) -> dict[int, int]:
    """A share for each of the points 1, …, `points`: a polynomial of degree threshold - 1, drawn afresh."""
    if len(secret) != SECRET_BYTES or not 1 <= threshold <= points:
        raise ValueError(f"expected {SECRET_BYTES} bytes and 1 to {points} shares to be needed; got {threshold}")
    polynomial = [int.from_bytes(secret, "big"), *(secrets.randbelow(PRIME) for _ in range(threshold - 1))]
    return {point: _at(polynomial, point) for point in range(1, points + 1)}


def join(shares: Mapping[int, int], threshold: int) -> bytes:
    """The secret.

    **Raises** `ReplyError` where there are too few shares, or one isn't on the polynomial of the others.
    """
    if len(shares) < threshold:
        raise ReplyError(f"{len(shares)} shares of a secret came; {threshold} are needed")
    first = dict(list(shares.items())[:threshold])
    secret = _interpolated(first, 0)
    odd = [point for point, share in shares.items() if _interpolated(first, point) != share % PRIME]
    if odd or secret >= 2 ** (8 * SECRET_BYTES):
        raise ReplyError(f"the shares of a secret contradict each other (at {odd or 'the secret itself'})")
    return secret.to_bytes(SECRET_BYTES, "big")


def _at(polynomial: list[int], point: int) -> int:
    value = 0
    for coefficient in reversed(polynomial):
        value = (value * point + coefficient) % PRIME
    return value


def _interpolated(shares: Mapping[int, int], at: int) -> int:
    total = 0
    for point, share in shares.items():
        above, below = 1, 1
        for other in shares:
            if other != point:
                above, below = above * (at - other) % PRIME, below * (point - other) % PRIME
        total += share * above * pow(below, -1, PRIME)
    return total % PRIME
