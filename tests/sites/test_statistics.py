"""A site that is asked for statistics: paid once, free again, bounded by the policy, and noise where its data fail."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import RecordDict

from fedmedgen.data import phantoms
from fedmedgen.data.cases import CaseSet
from fedmedgen.federation import local_statistics, messages, own_data, plan, records
from fedmedgen.federation.egress import Arrays, Reply
from fedmedgen.models import basis
from fedmedgen.privacy.ledger import Ledger, load_key
from fedmedgen.privacy.randomness import Stream
from fedmedgen.training.rows import encode

DIMENSION = 6
WORDS = ("statistics.share=0.5", "statistics.dimension=6")
Change = Callable[[Arrays], Any]
NAN, INF = float("nan"), float("inf")


@dataclass(frozen=True)
class Asking:
    """A server that asks for statistics, with some words, settings or arrays changed."""

    server: Any
    arrays: Arrays

    def request(self, change: Change | None = None, **words: Any) -> RecordDict:
        settings, arrays = self.server.settings, dict(self.arrays)
        if change is not None:
            change(arrays)
        noise = plan.noise_multipliers(settings)
        config = messages.request_config("run-1", plan.STATISTICS, settings, noise["generator"], noise["statistics"])
        config[records.SERVER_ROUND] = 1
        for key, value in words.items():
            config[key.replace("_", "-")] = value
        return RecordDict({records.ARRAYS: messages.pack_arrays(arrays), records.CONFIG: config})

    def ask(self, change: Change | None = None, **words: Any) -> Reply:
        return messages.unpack_reply(self.server.send(self.request(change, **words)).content)


@pytest.fixture
def asking(server: Any) -> Asking:
    other = server.asking(*WORDS)
    data = other.settings.data
    public = phantoms.prior(40, data=data, classes=data.classes, seed=3).cases
    return Asking(other, basis.pca(encode(public, data.mask_classes), DIMENSION).to_arrays())


def test_statistics_are_paid_once_and_the_same_request_is_free(asking: Asking) -> None:
    first, events = asking.ask(), asking.server.events
    assert (first.config[records.STATUS], first.metrics) == (records.DONE, {records.WEIGHT: 30.0})
    assert events == ["open", "reserve", "complete"]
    again = asking.ask()
    assert np.array_equal(first.arrays[local_statistics.VECTOR], again.arrays[local_statistics.VECTOR])
    assert asking.server.events == events


def test_a_real_sites_statistics_are_not_seeded(asking: Asking, tmp_path: Path) -> None:
    first = asking.ask()
    other = replace(asking, server=asking.server.at(folder=str(tmp_path / "other" / "state"))).ask()
    vector, again = (reply.arrays[local_statistics.VECTOR] for reply in (first, other))
    assert not np.array_equal(vector, again)


def test_the_ledger_holds_a_plan_of_statistics_and_rounds_within_the_claim(asking: Asking) -> None:
    asking.ask()
    policy = asking.server.policy_read
    ledger = Ledger(policy.ledger_path, key=load_key(policy.key_path), head_path=policy.head_path)
    (counted,) = ledger.spent().plans.values()
    assert [stage["name"] for stage in counted.mapping["stages"]] == ["statistics", "generator", "segmenter"]
    assert counted.reserved == {"statistics": 1, "generator": 0, "segmenter": 0}
    assert counted.epsilon <= asking.server.settings.privacy.epsilon


def test_a_second_basis_is_refused_for_its_budget(asking: Asking) -> None:
    asking.ask()
    events = asking.server.events
    other = asking.ask(lambda arrays: arrays.update({"basis.mean": arrays["basis.mean"] + np.float32(0.1)}))
    assert other.config[records.STATUS] == records.REFUSED_BUDGET
    assert (other.arrays, asking.server.events) == ({}, events)


def scaled(name: str, factor: float) -> Change:
    return lambda arrays: arrays.update({f"basis.{name}": (arrays[f"basis.{name}"] + 1) * np.float32(factor)})


def array(name: str, value: np.ndarray) -> Change:
    return lambda arrays: arrays.update({name: value.astype(np.float32)})


HOSTILE = [
    *[(f"noise {value}", None, {"statistics_noise": value}, "noise.multiplier")
      for value in (0.0, -1.0, 1e-300, 0.05, NAN, INF)],
    ("noise for more than the claim", None, {"statistics_noise": 0.4}, "cost epsilon"),
    ("weak rounds beside it", None, {"noise_multiplier": 0.4}, "cost epsilon"),
    ("noise as text", None, {"statistics_noise": "0"}, "str under 'statistics-noise'"),
    ("noise of another name", None, {"statistics_noises": 1.0}, "the key 'statistics-noises'"),
    ("second round", None, {"server_round": 2}, "for round 2"),
    ("not a number", scaled("mean", NAN), {}, "not all finite"),
    ("infinite", scaled("components", INF), {}, "not all finite"),
    ("no scale", scaled("scale", 0.0), {}, "not above 0"),
    ("other dimension", array("basis.scale", np.ones(7)), {}, "7 coefficients"),
    ("no components", array("basis.scale", np.ones(0)), {}, "0 coefficients"),
    ("other image", array("basis.mean", np.zeros((3, 16, 16))), {}, "basis or features don't fit"),
    ("no basis", lambda arrays: arrays.clear(), {}, "0 coefficients"),
    ("one more array", array("patients", np.zeros(3)), {}, "'patients'"),
    ("frequencies unasked", array("frequencies", np.zeros((2, 6))), {}, "'frequencies'"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "words", "reason"), [row[1:] for row in HOSTILE], ids=[row[0] for row in HOSTILE])
def test_a_hostile_request_for_statistics_is_refused_before_data_are_read_or_anything_is_spent(
    asking: Asking, loads: list[str], caplog: pytest.LogCaptureFixture, change: Any, words: Any, reason: str
) -> None:
    reply = asking.ask(change, **words)
    assert (reply.config[records.STATUS], reply.arrays, reply.metrics) == (records.REFUSED_POLICY, {}, {})
    last = caplog.records[-1]
    assert last.exc_info is not None
    assert re.search(reason, str(last.exc_info[1]))
    assert (loads, asking.server.spent) == ([], False)


@pytest.mark.parametrize("limit", [{"largest_statistics": 83}, {"largest_dimension": 5}, {"largest_statistics": 0}])
def test_a_basis_beyond_the_policy_is_refused(asking: Asking, limit: dict[str, int]) -> None:
    reply = replace(asking, server=asking.server.at(**limit)).ask()
    assert (reply.config[records.STATUS], asking.server.spent) == (records.REFUSED_POLICY, False)


def test_a_study_without_statistics_is_asked_for_none(asking: Asking) -> None:
    request = asking.request()
    request[records.CONFIG][records.SETTINGS] = messages.pack_settings(asking.server.asking().settings)
    reply = messages.unpack_reply(asking.server.send(request).content)
    assert (reply.config[records.STATUS], asking.server.spent) == (records.REFUSED_POLICY, False)


@pytest.fixture
def seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's noise replaced by a known one, so that two replies can be compared."""
    monkeypatch.setattr(Stream, "system", lambda: Stream.seeded(5))


def test_a_patient_of_nan_changes_no_bit_of_the_reply(
    asking: Asking, seeded: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = own_data._read

    def one_more(*words: Any) -> CaseSet:
        cases = plain(*words)
        bad = replace(cases.cases[0], image=np.full((1, 16, 16), np.nan, np.float32), patient="p-bad", name="bad.png")
        return cases.with_cases([*cases, bad])

    first = asking.ask().arrays[local_statistics.VECTOR]
    monkeypatch.setattr(own_data, "_read", one_more)
    assert np.array_equal(first, _fresh(asking).ask().arrays[local_statistics.VECTOR])


def _fresh(asking: Asking) -> Asking:
    """The same site before anything was spent."""
    return replace(asking, server=asking.server.at(folder=asking.server.policy.folder + "-fresh"))


def test_a_fault_in_the_data_yields_a_reply_of_noise(
    asking: Asking, seeded: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, calls = local_statistics.patients_of, []

    def breaks_once(stage: str, cases: CaseSet) -> Any:
        calls.append(len(cases))
        if len(calls) == 1:
            raise RuntimeError("patient 17")
        return plain(stage, cases)

    monkeypatch.setattr(local_statistics, "patients_of", breaks_once)
    reply = asking.ask()
    noise = plan.noise_multipliers(asking.server.settings)["statistics"]
    vector = torch.from_numpy(reply.arrays[local_statistics.VECTOR]).double()
    expected = noise * torch.from_numpy(Stream.seeded(5).normal_float64(len(vector))) / 30
    torch.testing.assert_close(vector, expected, atol=1e-6, rtol=0)
    assert calls == [48, 0]
    assert reply.config[records.STATUS] == records.DONE
