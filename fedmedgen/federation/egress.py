"""The only door out of a site: what `records` lists passes, public things only as the policy has them."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NewType

import numpy as np
from numpy.typing import NDArray

from fedmedgen.errors import EgressError
from fedmedgen.federation import records
from fedmedgen.federation.records import Listed, Privacy

Arrays = dict[str, NDArray[np.float32]]
LONGEST_MASKING = 100_000
MASKING_WORDS = r'[\[\]{}:, ]*("[\w .+/=-]{1,256}"[\[\]{}:, ]*)*'  # of JSON: names of sites, keys, shares
LISTED = {(item.record, item.key): item for item in records.OUTGOING}


@dataclass(frozen=True)
class Reply:
    """What a site wants to send: arrays by name, numbers and words."""

    config: Mapping[str, str]
    metrics: Mapping[str, float] = field(default_factory=dict)
    arrays: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)


Checked = NewType("Checked", Reply)  # a reply that `check` has let through: nothing else can be packed


def check(
    reply: Reply,
    *,
    public: Mapping[str, str | float],
    expected: Mapping[str, tuple[int, ...]],
    simulation: bool,
) -> Checked:
    """The reply, if every part of it may leave, its arrays in the order that was asked for.

    `public` are the policy's own words and figures by key; `expected` are the shapes of the arrays that were asked for.

    **Guarantee** A public value leaves only as the policy has it: a true count in its place is refused.

    **Raises** `EgressError` naming the part that may not leave.
    """
    for record, values in ((records.CONFIG, reply.config), (records.METRICS, reply.metrics)):
        for key, value in values.items():
            item = LISTED.get((record, key))
            if item is None:
                raise EgressError(f"{record}[{key!r}] is not in federation.records: it may not leave the site")
            _check_value(item, value, public, simulation)
    status = reply.config.get(records.STATUS)
    if status not in records.STATUSES:
        raise EgressError(f"status must be one of {', '.join(records.STATUSES)}; got {status!r}")
    if status != records.DONE and (reply.metrics or reply.arrays):
        raise EgressError(f"a reply of status {status!r} must hold no arrays and no metrics")
    if not reply.arrays:
        return Checked(reply)
    check_arrays(reply.arrays, expected)
    return Checked(replace(reply, arrays={name: reply.arrays[name] for name in expected}))


def refusal(site: str, status: str) -> Checked:
    """A code and the name of who sends it, nothing else."""
    reply = Reply(config={records.SITE: site, records.STATUS: status})
    return check(reply, public={records.SITE: site}, expected={}, simulation=False)


def check_arrays(arrays: Mapping[str, NDArray[np.float32]], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse arrays whose names, shapes or types differ from what was asked for."""
    if set(arrays) != set(expected):
        odd = sorted(set(arrays) ^ set(expected))[0]
        raise EgressError(f"arrays must have the names that were asked for; {odd!r} is on one side only")
    for name, array in arrays.items():
        wanted = np.uint8 if name == records.MASKED else np.float32
        if array.dtype != wanted or array.shape != tuple(expected[name]):
            raise EgressError(
                f"{name} must be {np.dtype(wanted)} of shape {tuple(expected[name])}; got {array.dtype} {array.shape}"
            )


def _check_value(item: Listed, value: Any, public: Mapping[str, str | float], simulation: bool) -> None:
    """Refuse a listed key of another type, or with a value that its privacy status doesn't let out."""
    if item.privacy is Privacy.SIMULATION and not simulation:
        raise EgressError(f"{item.key!r} is computed from patients: it leaves only in a simulation on public data")
    if type(value) is not item.kind:
        raise EgressError(f"{item.key!r} must be {item.kind.__name__}; got {type(value).__name__}")
    if item.privacy is Privacy.MASKING and not (
        len(str(value)) <= LONGEST_MASKING and re.fullmatch(MASKING_WORDS, str(value))
    ):
        raise EgressError(f"{item.key!r} must be names, keys and shares in JSON")
    if isinstance(value, float) and not math.isfinite(value):
        raise EgressError(f"{item.key!r} must be finite; got {value}")
    if item.privacy is Privacy.PUBLIC and (item.key not in public or value != public[item.key]):
        raise EgressError(f"{item.key!r} may leave only as the policy has it, {public.get(item.key)!r}; got {value!r}")
