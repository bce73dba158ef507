"""Named arrays as one: what goes in comes out, in a format that others read; what can't be read says so."""

from typing import Any

import hypothesis.extra.numpy as arrays_of
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from hypothesis import given
from hypothesis import strategies as some
from safetensors.numpy import load

from fedmedgen.federation import messages, packing

NAMES = some.text(min_size=1, max_size=12).filter(lambda name: name != "__metadata__" and name.isprintable())
VALUES = some.sampled_from([np.float32, np.float64, np.uint8, np.int64]).flatmap(
    lambda dtype: arrays_of.arrays(dtype, arrays_of.array_shapes(min_dims=0, min_side=0, max_side=5))
)


@given(some.dictionaries(NAMES, VALUES, max_size=5))
def test_arrays_come_back_as_they_went_and_are_a_safetensors_file(arrays: dict[str, Any]) -> None:
    record = packing.packed(arrays)
    assert packing.is_packed(record)
    for found in (messages.unpack_arrays(record), load(record["packed"].data)):
        assert set(found) == set(arrays)
        for name, value in arrays.items():
            assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape)
            assert found[name].tobytes() == value.tobytes()


def test_strided_arrays_and_flowers_own_are_packed_too() -> None:
    arrays = {"turned": np.arange(6, dtype=np.float32).reshape(2, 3).T}
    for given_ in (arrays, packing.unpacked(messages.as_flowers(arrays))):
        np.testing.assert_array_equal(messages.unpack_arrays(packing.packed(given_))["turned"], arrays["turned"])


def test_the_same_arrays_are_the_same_bytes_whatever_their_order() -> None:
    arrays = {name: np.full(2, place, np.float32) for place, name in enumerate("cab")}
    again = {name: arrays[name] for name in sorted(arrays)}
    assert packing.packed(arrays)["packed"].data == packing.packed(again)["packed"].data


def test_arrays_are_looked_at_in_place() -> None:
    record = packing.packed({"w": np.zeros(3, np.float32)})
    found = packing.Unpacked(record)["w"]
    assert not found.flags.writeable
    assert not found.flags.owndata
    assert messages.unpack_arrays(record)["w"].flags.writeable


@given(some.binary(max_size=200))
def test_bytes_that_are_no_arrays_raise_nothing_but_a_value_error(data: bytes) -> None:
    record = ArrayRecord({"packed": Array("uint8", (len(data),), "safetensors", data)})
    with pytest.raises(ValueError):  # noqa: PT011  (of many kinds)
        messages.unpack_arrays(record)


def test_a_message_of_many_arrays_is_one_of_flowers_objects() -> None:
    """What Flower's server stores and hands out one by one."""
    assert len(messages.pack_arrays({str(number): np.zeros(4, np.float32) for number in range(100)})) == 1
