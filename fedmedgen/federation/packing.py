"""Named arrays as one array of bytes: Flower's server stores, and hands out, every array of a message by itself.

A hundred of them are hundreds of requests. The bytes are a safetensors file's; they are read in place, array by array,
and nothing in them is believed.
"""

import json
from collections.abc import Iterator, Mapping
from io import BytesIO
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray

PACKED = "packed"
STYPE = "safetensors"
LENGTH = 8  # bytes of the number that says how long the header is
DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "U32": "<u4", "U16": "<u2", "U8": "|u1"}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def packed(arrays: Mapping[str, NDArray[Any]]) -> ArrayRecord:
    """The arrays as a record that travels: one array of bytes, in the order of the names."""
    header, place = {}, 0
    for name in sorted(arrays):
        array = arrays[name]
        end = place + array.nbytes
        header[name] = {"dtype": NAMES[array.dtype.str], "shape": array.shape, "data_offsets": (place, end)}
        place = end
    words = json.dumps(header).encode()
    words += b" " * (-len(words) % LENGTH)
    out = BytesIO()
    out.write(len(words).to_bytes(LENGTH, "little") + words)
    for name in header:
        out.write(np.ascontiguousarray(arrays[name]).data)
    data = out.getvalue()
    return ArrayRecord({PACKED: Array(dtype="uint8", shape=(len(data),), stype=STYPE, data=data)})


def is_packed(record: ArrayRecord) -> bool:
    return list(record) == [PACKED] and record[PACKED].stype == STYPE


def unpacked(record: ArrayRecord) -> Mapping[str, NDArray[Any]]:
    """The arrays of a record, each looked at when it is wanted: the record's own copy is the only whole one."""
    return Unpacked(record) if is_packed(record) else FlowersOwn(record)


class Unpacked(Mapping[str, NDArray[Any]]):
    """The arrays of a packed record, read-only and in its own bytes.

    **Raises** `ValueError` where the bytes are no such file.
    """

    def __init__(self, record: ArrayRecord) -> None:
        self._data = record[PACKED].data
        length = int.from_bytes(self._data[:LENGTH], "little")
        self._start = LENGTH + length
        if not 0 < length <= len(self._data) - LENGTH:
            raise ValueError(f"a header of {length} bytes in {len(self._data)}")
        header = json.loads(self._data[LENGTH : self._start])
        if not isinstance(header, dict):
            raise ValueError("the header is no JSON object")
        self._entries = {name: _entry(name, entry) for name, entry in header.items()}

    def __getitem__(self, name: str) -> NDArray[Any]:
        dtype, shape, first, last = self._entries[name]
        part = memoryview(self._data)[self._start :][first:last]
        return np.frombuffer(part, dtype).reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def _entry(name: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    try:
        dtype, shape, (first, last) = DTYPES[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"]
        whole = all(type(number) is int and number >= 0 for number in (*shape, first, last))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{name[:80]!r} is no array: {error!r}") from error
    if not whole:
        raise ValueError(f"{name[:80]!r} has a shape or place that can't be")
    return dtype, shape, first, last


class FlowersOwn(Mapping[str, NDArray[Any]]):
    """The arrays of a record as Flower's strategies have it."""

    def __init__(self, record: ArrayRecord) -> None:
        self._record = record

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._record[name].numpy()

    def __iter__(self) -> Iterator[str]:
        return iter(self._record)

    def __len__(self) -> int:
        return len(self._record)
