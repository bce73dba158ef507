"""The only door out: what isn't listed can't leave."""

import numpy as np
import pytest

from fedmedgen.errors import EgressError
from fedmedgen.federation import egress, records
from fedmedgen.federation.egress import Reply

SHAPES = {"weight": (2, 3)}
GOOD = Reply(
    config={records.SITE: "north", records.STATUS: records.DONE},
    metrics={records.WEIGHT: 100.0},
    arrays={"weight": np.zeros((2, 3), np.float32)},
)


def test_a_listed_reply_passes() -> None:
    assert egress.check(GOOD, expected=SHAPES, simulation=False) is GOOD


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (Reply(config={**GOOD.config, "note": "x"}), "note"),
        (Reply(config=GOOD.config, metrics={"label-counts": 3.0}), "label-counts"),
        (Reply(config=GOOD.config, metrics={records.LOSS: 0.3}), "computed from patients"),
        (Reply(config=GOOD.config, metrics={records.WEIGHT: float("nan")}), "finite"),
        (Reply(config={records.SITE: "north", records.STATUS: "patient 7 has no mask"}), "status must be one of"),
        (Reply(config=GOOD.config, arrays={"batch": np.zeros((2, 3), np.float32)}), "batch"),
        (Reply(config=GOOD.config, arrays={"weight": np.zeros((8, 1, 64, 64), np.float32)}), "shape"),
        (Reply(config=GOOD.config, arrays={"weight": np.zeros((2, 3))}), "float32"),  # type: ignore[dict-item]
    ],
)
def test_what_is_not_listed_is_refused(reply: Reply, words: str) -> None:
    with pytest.raises(EgressError, match=words):
        egress.check(reply, expected=SHAPES, simulation=False)


def test_a_loss_leaves_only_in_a_simulation() -> None:
    reply = Reply(config=GOOD.config, metrics={records.LOSS: 0.3})
    assert egress.check(reply, expected={}, simulation=True) is reply
