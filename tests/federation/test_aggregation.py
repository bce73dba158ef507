"""The checks a reply must pass before it counts."""

import numpy as np
import pytest

from fedmedgen.errors import ReplyError
from fedmedgen.federation.aggregation import check_reply, update_norm

REFERENCE = {"a": np.zeros((2, 2), np.float32), "b": np.ones(3, np.float32)}


def moved(by: float) -> dict[str, np.ndarray]:
    return {key: value + np.float32(by) for key, value in REFERENCE.items()}


def test_the_norm_is_over_all_arrays_together() -> None:
    assert update_norm(moved(2.0), REFERENCE) == pytest.approx(2 * np.sqrt(7))


def test_a_usable_update_returns_its_norm() -> None:
    assert check_reply(moved(0.1), REFERENCE, max_norm=1.0) == pytest.approx(0.1 * np.sqrt(7), rel=1e-5)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"a": REFERENCE["a"]}, "'b'"),
        ({**REFERENCE, "c": REFERENCE["a"]}, "'c'"),
        ({**REFERENCE, "a": np.zeros((2, 3), np.float32)}, "shape"),
        ({**REFERENCE, "a": np.zeros((2, 2), np.int64)}, "float32"),
        ({**REFERENCE, "b": np.array([1, np.nan, 1], np.float32)}, "finite"),
        ({**REFERENCE, "b": np.array([1, np.inf, 1], np.float32)}, "finite"),
        (moved(100.0), "norm"),
    ],
)
def test_an_unusable_reply_is_refused_with_its_reason(arrays: dict[str, np.ndarray], words: str) -> None:
    with pytest.raises(ReplyError, match=words):
        check_reply(arrays, REFERENCE, max_norm=10.0)
