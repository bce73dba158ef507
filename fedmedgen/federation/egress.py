"""The only door out of a site: what `records` lists passes, all else is refused."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fedmedgen.errors import EgressError
from fedmedgen.federation import records

Arrays = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Reply:
    """What a site wants to send: arrays by name, numbers and words."""

    config: Mapping[str, str]
    metrics: Mapping[str, float] = field(default_factory=dict)
    arrays: Arrays = field(default_factory=dict)


def check(reply: Reply, *, expected: Mapping[str, tuple[int, ...]], simulation: bool) -> Reply:
    """The reply, if every part of it is listed; `expected` are the shapes of the arrays that were asked for.

    **Raises** `EgressError` naming the part that isn't listed.
    """
    listed = {(item.record, item.key): item for item in records.OUTGOING}
    for record, values in ((records.CONFIG, reply.config), (records.METRICS, reply.metrics)):
        for key, value in values.items():
            item = listed.get((record, key))
            if item is None:
                raise EgressError(f"{record}[{key!r}] is not in federation.records: it may not leave the site")
            if item.privacy is records.Privacy.SIMULATION and not simulation:
                raise EgressError(f"{key!r} is computed from patients: it leaves only in a simulation on public data")
            if not isinstance(value, item.kind):
                raise EgressError(f"{key!r} must be {item.kind.__name__}; got {type(value).__name__}")
            if isinstance(value, float) and not math.isfinite(value):
                raise EgressError(f"{key!r} must be finite; got {value}")
    if reply.config.get(records.STATUS) not in records.STATUSES:
        raise EgressError(f"status must be one of {', '.join(records.STATUSES)}; got {reply.config.get('status')!r}")
    if reply.arrays:
        check_arrays(reply.arrays, expected)
    return reply


def check_arrays(arrays: Mapping[str, NDArray[np.float32]], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse arrays whose names, shapes or types differ from what was asked for."""
    if set(arrays) != set(expected):
        odd = sorted(set(arrays) ^ set(expected))[0]
        raise EgressError(f"arrays must have the names that were asked for; {odd!r} is on one side only")
    for name, array in arrays.items():
        if array.dtype != np.float32 or array.shape != tuple(expected[name]):
            raise EgressError(
                f"{name} must be float32 of shape {tuple(expected[name])}; got {array.dtype} {array.shape}"
            )
