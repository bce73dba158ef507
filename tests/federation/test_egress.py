"""The only door out: what isn't listed can't leave."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from flwr.common.serde import recorddict_to_proto

from fedmedgen.errors import EgressError
from fedmedgen.federation import egress, messages, records
from fedmedgen.federation.egress import Reply

SHAPES = {"weight": (2, 3)}
PUBLIC = {records.SITE: "north", records.UNIT: "patient", records.SIMULATION: "no", records.PATIENTS: 500.0,
          records.LABELLED: 100.0, records.WEIGHT: 100.0}  # fmt: skip
GOOD = Reply(
    config={records.SITE: "north", records.STATUS: records.DONE},
    metrics={records.WEIGHT: 100.0},
    arrays={"weight": np.zeros((2, 3), np.float32)},
)


def test_a_listed_reply_passes() -> None:
    assert egress.check(GOOD, public=PUBLIC, expected=SHAPES, simulation=False) == GOOD


def test_arrays_leave_in_the_order_that_was_asked_for_whatever_order_they_come_in() -> None:
    shapes = {"weight": (2, 3), "bias": (3,), "a": (1,)}
    arrays = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    packed = set()
    for names in itertools.permutations(shapes):
        reply = replace(GOOD, arrays={name: arrays[name] for name in names})
        checked = egress.check(reply, public=PUBLIC, expected=shapes, simulation=False)
        assert list(checked.arrays) == list(shapes)
        packed.add(recorddict_to_proto(messages.pack_reply(checked)).SerializeToString(deterministic=True))
    assert len(packed) == 1


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (Reply(config={**GOOD.config, "note": "x"}), "note"),
        (Reply(config=GOOD.config, metrics={"label-counts": 3.0}), "label-counts"),
        (Reply(config=GOOD.config, metrics={records.LOSS: 0.3}), "computed from patients"),
        (Reply(config=GOOD.config, metrics={records.WEIGHT: float("nan")}), "finite"),
        (Reply(config=GOOD.config, metrics={records.WEIGHT: 97.0}), "only as the policy has it, 100.0; got 97.0"),
        (Reply(config=GOOD.config, metrics={records.PATIENTS: 497.0}), "only as the policy has it"),
        (Reply(config=GOOD.config, metrics={records.LABELLED: 98.0}), "only as the policy has it"),
        (Reply(config=GOOD.config, metrics={records.WEIGHT: 100}), "must be float"),
        (Reply(config=GOOD.config, metrics={records.WEIGHT: np.float64(100)}), "must be float"),
        (Reply(config=GOOD.config, metrics={records.SITE: 1.0}), "not in federation.records"),
        (Reply(config={**GOOD.config, records.WEIGHT: "100"}), "not in federation.records"),
        (Reply(config={**GOOD.config, records.SITE: "north, 497 patients"}), "only as the policy has it"),
        (Reply(config={**GOOD.config, records.UNIT: "image"}), "only as the policy has it"),
        (Reply(config={**GOOD.config, records.SIMULATION: "yes"}), "only as the policy has it"),
        (Reply(config={records.SITE: "north"}), "status must be one of"),
        (
            Reply(config={**GOOD.config, records.STATUS: records.FAULT}, metrics=GOOD.metrics),
            "no arrays and no metrics",
        ),
        (Reply(config={**GOOD.config, records.STATUS: records.FAULT}, arrays=GOOD.arrays), "no arrays and no metrics"),
        (Reply(config={records.SITE: "north", records.STATUS: "patient 7 has no mask"}), "status must be one of"),
        (Reply(config=GOOD.config, arrays={"batch": np.zeros((2, 3), np.float32)}), "batch"),
        (Reply(config=GOOD.config, arrays={"weight": np.zeros((8, 1, 64, 64), np.float32)}), "shape"),
        (Reply(config=GOOD.config, arrays={"weight": np.zeros((2, 3))}), "float32"),  # type: ignore[dict-item]
    ],
)
def test_what_is_not_listed_is_refused(reply: Reply, words: str) -> None:
    with pytest.raises(EgressError, match=words):
        egress.check(reply, public=PUBLIC, expected=SHAPES, simulation=False)


def test_a_public_thing_that_the_policy_does_not_give_is_refused() -> None:
    with pytest.raises(EgressError, match="only as the policy has it"):
        egress.check(GOOD, public={records.SITE: "north"}, expected=SHAPES, simulation=False)


def test_a_loss_leaves_only_in_a_simulation() -> None:
    reply = Reply(config=GOOD.config, metrics={records.LOSS: 0.3})
    assert egress.check(reply, public=PUBLIC, expected={}, simulation=True) is reply


def test_a_refusal_holds_a_name_and_a_code() -> None:
    said = {records.SITE: "north", records.STATUS: records.FAULT}
    assert egress.refusal("north", records.FAULT) == Reply(config=said)
    with pytest.raises(EgressError, match="status must be one of"):
        egress.refusal("north", "patient 7 has no mask")
