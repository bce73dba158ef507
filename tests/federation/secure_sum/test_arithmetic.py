"""Properties of the ring and of the shares, on drawn numbers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmedgen.errors import ReplyError
from fedmedgen.federation.secure_sum import ring, shamir
from fedmedgen.federation.secure_sum.masks import added

widths = st.integers(1, 7)
keys = st.lists(st.tuples(st.binary(min_size=32, max_size=32), st.booleans()), max_size=5)


@given(widths, st.lists(st.integers(-(2**62), 2**62), min_size=1, max_size=20))
def test_whole_numbers_come_back_through_the_bytes_modulo_the_ring(width: int, values: list[int]) -> None:
    numbers = ring.unpack(ring.pack(ring.from_whole(np.array(values), width), width), width)
    back = ring.to_whole(numbers, width)
    modulus = 256**width
    assert [(int(b) - v) % modulus for b, v in zip(back, values, strict=True)] == [0] * len(values)
    assert all(-(modulus // 2) <= int(b) < modulus // 2 for b in back)


@given(widths, st.lists(st.lists(st.integers(-(2**40), 2**40), min_size=4, max_size=4), min_size=1, max_size=6))
def test_a_sum_in_the_ring_is_the_sum_wherever_it_fits(width: int, rows: list[list[int]]) -> None:
    total = np.sum([ring.from_whole(np.array(row), width) for row in rows], axis=0)
    expected = [sum(column) for column in zip(*rows, strict=True)]
    found = ring.to_whole(total, width)
    largest = max(abs(value) for value in expected)
    if ring.width_for(largest) <= width:
        assert found.tolist() == expected
    assert all((int(f) - e) % 256**width == 0 for f, e in zip(found, expected, strict=True))


@given(st.integers(0, 2**62))
def test_the_width_holds_the_largest_number_of_either_sign(largest: int) -> None:
    width = ring.width_for(largest)
    values = np.array([largest, -largest])
    assert np.array_equal(ring.to_whole(ring.from_whole(values, width), width), values)


@settings(max_examples=30)
@given(widths, keys, st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=50))
def test_masks_that_are_added_and_taken_off_leave_nothing(
    width: int, masks: list[tuple[bytes, bool]], values: list[int]
) -> None:
    numbers = ring.from_whole(np.array(values), width)
    back = added(added(numbers, masks, width), [(key, not adds) for key, adds in masks], width)
    assert np.array_equal(ring.pack(back, width), ring.pack(numbers, width))


@settings(max_examples=50)
@given(st.binary(min_size=32, max_size=32), st.integers(1, 12), st.integers(0, 8), st.randoms())
def test_any_threshold_of_shares_gives_the_secret_back(
    secret: bytes, threshold: int, more: int, random: object
) -> None:
    shares = shamir.split(secret, threshold, threshold + more)
    chosen = random.sample(sorted(shares), threshold)  # type: ignore[attr-defined]
    assert shamir.join({point: shares[point] for point in chosen}, threshold) == secret
    assert shamir.join(shares, threshold) == secret


@settings(max_examples=30)
@given(st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32), st.integers(2, 8))
def test_fewer_shares_fit_every_secret(secret: bytes, other: bytes, threshold: int) -> None:
    """One share short, there is a polynomial through what is known for any other secret."""
    shares = shamir.split(secret, threshold, threshold)
    known = {point: share for point, share in shares.items() if point < threshold}
    through = {0: int.from_bytes(other, "big"), **known}
    forged = {**known, threshold: shamir._interpolated(through, threshold)}
    assert shamir.join(forged, threshold) == other
    guess = shamir._interpolated(known, 0)  # right were the polynomial of a lower degree
    assert guess != int.from_bytes(secret, "big")


def test_a_share_off_the_polynomial_is_found() -> None:
    shares = shamir.split(bytes(range(32)), 3, 5)
    with pytest.raises(ReplyError, match="contradict"):
        shamir.join({**shares, 5: shares[5] + 1}, 3)
    with pytest.raises(ReplyError, match="2 shares of a secret came; 3 are needed"):
        shamir.join({1: shares[1], 2: shares[2]}, 3)


def test_the_field_is_one() -> None:
    """Fermat's test to many bases: 2^256 + 297 is prime."""
    assert all(pow(base, shamir.PRIME - 1, shamir.PRIME) == 1 for base in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37))


def test_a_sum_passes_the_end_of_its_ring_hardly_ever() -> None:
    """Bernstein's bound lies above the exact tail of the noise."""
    from scipy.stats import skellam

    for variance in (2e3, 1e5, 1e8):
        for length in (1, 4000):
            beyond = ring.largest_sum(0, 1.0, variance, length)
            exact = 2 * length * skellam.sf(beyond - 1, variance / 2, variance / 2)
            assert exact <= ring.WRAPS
