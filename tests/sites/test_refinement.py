"""A site asked about learned features after its statistics: two releases under one plan, checked as the first is."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import RecordDict

from fedmedgen.data import phantoms
from fedmedgen.federation import local_statistics, messages, plan, records
from fedmedgen.federation.egress import Arrays, Reply
from fedmedgen.models import basis, refinement
from fedmedgen.models.coefficient_sampler import classifier
from fedmedgen.privacy.ledger import Ledger, load_key
from fedmedgen.privacy.statistics import Layout
from fedmedgen.training.rows import encode

FEATURES = 5
WORDS = ("statistics.share=0.5", "statistics.rounds=2", "statistics.networks=1")
Change = Callable[[Arrays], Any]
NAN, INF = float("nan"), float("inf")


@dataclass(frozen=True)
class Asking:
    """A server that asks for the statistics of a basis, then of features, with some words or arrays changed."""

    server: Any
    basis: Arrays
    features: Arrays

    def request(self, number: int, change: Change | None = None, **words: Any) -> RecordDict:
        settings, arrays = self.server.settings, dict(self.basis if number == 1 else self.features)
        if change is not None:
            change(arrays)
        noise = plan.noise_multipliers(settings)
        config = messages.request_config("run-1", plan.STATISTICS, settings, noise["generator"], noise["statistics"])
        config[records.SERVER_ROUND] = number
        for key, value in words.items():
            config[key.replace("_", "-")] = value
        return RecordDict({records.ARRAYS: messages.pack_arrays(arrays), records.CONFIG: config})

    def ask(self, number: int, change: Change | None = None, **words: Any) -> Reply:
        return messages.unpack_reply(self.server.send(self.request(number, change, **words)).content)


@pytest.fixture
def asking(server: Any) -> Asking:
    other = server.asking(*WORDS)
    data = other.settings.data
    public = encode(phantoms.prior(40, data=data, classes=data.classes, seed=3).cases, data.mask_classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = classifier(len(data.classes)).eval()
    features = refinement.learned_features([network], public[:, :1], dimension=FEATURES)
    return Asking(other, basis.pca(public, 6).to_arrays(), refinement.to_arrays(features))


def test_each_round_is_paid_once_under_one_plan_and_the_same_requests_are_free(asking: Asking) -> None:
    replies, events = [asking.ask(number) for number in (1, 2)], asking.server.events
    assert [reply.config[records.STATUS] for reply in replies] == [records.DONE] * 2
    assert events == ["open", "reserve", "complete", "reserve", "complete"]
    classes = len(asking.server.settings.data.classes)
    sizes = [Layout(classes, dimension, "moments").size for dimension in (6, FEATURES)]
    assert [reply.arrays[local_statistics.VECTOR].shape for reply in replies] == [(size,) for size in sizes]
    for number, first in ((2, replies[1]), (1, replies[0])):
        again = asking.ask(number).arrays[local_statistics.VECTOR]
        assert np.array_equal(again, first.arrays[local_statistics.VECTOR])
    assert asking.server.events == events


def test_both_rounds_stand_in_the_ledger_as_two_steps_of_the_plan_within_the_claim(asking: Asking) -> None:
    asking.ask(1)
    asking.ask(2)
    policy = asking.server.policy_read
    ledger = Ledger(policy.ledger_path, key=load_key(policy.key_path), head_path=policy.head_path)
    (counted,) = ledger.spent().plans.values()
    first = counted.mapping["stages"][0]
    assert (first["name"], first["steps"], first["sample_rate"]) == ("statistics", 2, 1.0)
    assert counted.reserved == {"statistics": 2, "generator": 0, "segmenter": 0}
    assert counted.epsilon <= asking.server.settings.privacy.epsilon


def test_nothing_is_left_for_other_features_once_both_rounds_are_paid(asking: Asking) -> None:
    asking.ask(1)
    asking.ask(2)
    events = asking.server.events
    other = asking.ask(2, scaled("directions", 0.5))
    assert (other.config[records.STATUS], other.arrays) == (records.REFUSED_BUDGET, {})
    assert asking.server.events == events


def test_features_asked_about_first_take_a_step_as_any_round_does(asking: Asking) -> None:
    assert asking.ask(2).config[records.STATUS] == records.DONE
    assert asking.ask(2, scaled("centre", 2.0)).config[records.STATUS] == records.DONE
    assert asking.ask(1).config[records.STATUS] == records.REFUSED_BUDGET
    assert asking.server.events.count("reserve") == 2


def scaled(name: str, factor: float) -> Change:
    key = refinement.PREFIX + name
    return lambda arrays: arrays.update({key: (arrays[key] + 1) * np.float32(factor)})


def array(name: str, *shape: int) -> Change:
    return lambda arrays: arrays.update({name: np.ones(shape, np.float32)})


def no(name: str) -> Change:
    return lambda arrays: arrays.pop(name)


DIRECTIONS = f"{refinement.PREFIX}directions"
FIRST = f"{refinement.PREFIX}networks.0.0.weight"
HOSTILE = [
    ("noise for more than the claim", None, {"statistics_noise": 0.4}, "cost epsilon"),
    ("no noise", None, {"statistics_noise": 0.0}, "noise.multiplier"),
    ("third round", None, {"server_round": 3}, "for round 3; the statistics has rounds 1 to 2"),
    ("round nought", None, {"server_round": 0}, "round"),
    ("features as the first round", None, {"server_round": 1}, "0 coefficients"),
    ("direction not a number", scaled("directions", NAN), {}, "not all finite"),
    ("infinite centre", scaled("centre", INF), {}, "not all finite"),
    ("infinite weights", scaled("networks.0.0.weight", INF), {}, "not all finite"),
    ("directions of other numbers", array(DIRECTIONS, FEATURES, 7), {}, "don't fit"),
    ("directions in a row", array(DIRECTIONS, FEATURES), {}, "don't fit"),
    ("directions of no shape", array(DIRECTIONS), {}, "0 coefficients"),
    ("no directions", array(DIRECTIONS, 0, 576), {}, "0 coefficients"),
    ("directions left out", no(DIRECTIONS), {}, "0 coefficients"),
    ("weights left out", no(FIRST), {}, "don't fit"),
    ("weights of another shape", array(FIRST, 16, 3, 3, 3), {}, "don't fit"),
    ("one more network", array(FIRST.replace("networks.0", "networks.1"), 16, 1, 3, 3), {}, "don't fit"),
    ("one more array", array("patients", 3), {}, "'patients'"),
    ("a basis beside them", array("basis.scale", 6), {}, "'basis.scale'"),
    ("nothing at all", lambda arrays: arrays.clear(), {}, "0 coefficients"),
]  # fmt: skip


def refused(asking: Asking, request: RecordDict, reason: str, log: pytest.LogCaptureFixture) -> bool:
    """Whether it is refused for this reason, with nothing sent or spent."""
    reply = messages.unpack_reply(asking.server.send(request).content)
    error = log.records[-1].exc_info
    said = error is not None and re.search(reason, str(error[1])) is not None
    return said and reply.config[records.STATUS] == records.REFUSED_POLICY and not (reply.arrays or asking.server.spent)


@pytest.mark.parametrize(("change", "words", "reason"), [row[1:] for row in HOSTILE], ids=[row[0] for row in HOSTILE])
def test_a_hostile_request_about_features_is_refused_before_data_are_read_or_anything_is_spent(
    asking: Asking, loads: list[str], caplog: pytest.LogCaptureFixture, change: Any, words: Any, reason: str
) -> None:
    assert refused(asking, asking.request(2, change, **words), reason, caplog)
    assert loads == []


def test_a_basis_where_features_are_due_is_refused(
    asking: Asking, loads: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert refused(asking, asking.request(1, server_round=2), "0 coefficients", caplog)
    assert loads == []


def test_a_study_of_one_round_is_asked_about_no_features(
    asking: Asking, loads: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    one = replace(asking, server=asking.server.asking("statistics.share=0.5", "statistics.networks=1"))
    assert refused(one, one.request(2), "for round 2; the statistics has rounds 1 to 1", caplog)
    assert loads == []


@pytest.mark.parametrize("limit", [{"largest_dimension": FEATURES - 1}, {"largest_statistics": 62},
                                   {"largest_parameters": 10_000}, {"largest_rounds": 1}])  # fmt: skip
def test_features_beyond_the_policy_are_refused(
    asking: Asking, loads: list[str], caplog: pytest.LogCaptureFixture, limit: dict[str, int]
) -> None:
    strict = replace(asking, server=asking.server.at(**limit))
    assert refused(strict, strict.request(2), "policy allows|at most", caplog)
    assert loads == []
