"""Arrays that a network rests on and no site trains: taken as the request describes them, kept, never sent back."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import RecordDict
from torch import nn

from fedmedgen.federation import local_round, messages, plan, records
from fedmedgen.federation.egress import Arrays, Reply
from sites.public_arrays import KEPT

WHOLE = local_round.build_model
FROZEN = "unet.conv_in.weight"
Tamper = Callable[[Arrays], Any]


@pytest.fixture(autouse=True)
def frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every network has one parameter that doesn't train."""

    def partly(*asked: Any) -> nn.Module:
        model = WHOLE(*asked)
        model.get_parameter(FROZEN).requires_grad_(False)
        return model

    monkeypatch.setattr(local_round, "build_model", partly)


def public_of(server: Any) -> Arrays:
    return local_round.public_arrays(local_round.build_model(server.settings, plan.GENERATOR))


def request(server: Any, public: Arrays, *, along: bool, digest: str | None = None, **words: Any) -> RecordDict:
    """A round that rests on public arrays, sent along or named."""
    named = messages.digest_of(public) if digest is None else digest
    content: RecordDict = server.request(public_arrays=named, **words)
    if along:
        arrays = messages.unpack_arrays(content.array_records[records.ARRAYS])
        extra = {records.PUBLIC_PREFIX + name: value for name, value in public.items()}
        content[records.ARRAYS] = messages.pack_arrays({**arrays, **extra})
    return content


def answer(server: Any, content: RecordDict) -> Reply:
    return messages.unpack_reply(server.send(content).content)


def kept(server: Any) -> list[Path]:
    return sorted(Path(server.policy.folder).glob("public/*.safetensors"))


def test_arrays_sent_along_once_serve_requests_that_name_their_hash(server: Any) -> None:
    public = public_of(server)
    first = answer(server, request(server, public, along=True))
    second = answer(server, request(server, public, along=False, server_round=2))
    assert [reply.config[records.STATUS] for reply in (first, second)] == [records.DONE] * 2
    assert server.events == ["open", "reserve", "complete", "reserve", "complete"]
    assert FROZEN not in {*first.arrays, *second.arrays}
    assert [file.stem for file in kept(server)] == [messages.digest_of(public)]


def test_the_round_rests_on_the_arrays_that_came(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    public = {name: value + 1 for name, value in public_of(server).items()}
    seen: list[Arrays] = []
    load = local_round.load_public
    monkeypatch.setattr(local_round, "load_public", lambda model, arrays: (seen.append(arrays), load(model, arrays)))
    answer(server, request(server, public, along=True))
    answer(server, request(server, public, along=False, server_round=2))
    assert len(seen) == 2
    assert all(np.array_equal(arrays[FROZEN], public[FROZEN]) for arrays in seen)


def test_the_same_request_is_replayed_free_whether_its_arrays_come_along_or_not(server: Any) -> None:
    public = public_of(server)
    first, events = answer(server, request(server, public, along=True)), server.events
    for file in kept(server):
        file.unlink()  # a replay needs them no more
    for along in (False, True):
        again = answer(server, request(server, public, along=along))
        assert all(np.array_equal(first.arrays[name], again.arrays[name]) for name in first.arrays)
    assert server.events == events


@pytest.mark.parametrize("loss", ["never came", "deleted", "spoiled", "of another hash"])
def test_a_site_that_lacks_the_arrays_says_so_before_anything_is_spent(server: Any, loss: str) -> None:
    public = public_of(server)
    server.create()
    if loss != "never came":
        answer(server, request(server, public, along=True))
        (file,) = kept(server)
        if loss == "deleted":
            file.unlink()
        elif loss == "spoiled":
            data = bytearray(file.read_bytes())
            data[-1] ^= 1
            file.write_bytes(data)
        else:
            public = {name: value + 1 for name, value in public.items()}
    events = server.events if server.spent else []
    lacking = answer(server, request(server, public, along=False, server_round=2))
    assert lacking == Reply({records.SITE: "north", records.STATUS: records.LACKS_ARRAYS})
    assert (server.events if server.spent else []) == events
    assert answer(server, request(server, public, along=True, server_round=2)).config[records.STATUS] == records.DONE


ODD: list[tuple[str, Tamper, str]] = [
    ("another name", lambda found: found.update(patients=found.pop(FROZEN)), "public arrays don't fit"),
    ("one more", lambda found: found.update(patients=np.zeros(3, np.float32)), "public arrays don't fit"),
    ("another shape", lambda found: found.update({FROZEN: np.zeros((1, 1), np.float32)}), "public arrays don't fit"),
    ("another type", lambda found: found.update({FROZEN: found[FROZEN].astype(np.float64)}), "public arrays don't fit"),
    ("not finite", lambda found: found.update({FROZEN: found[FROZEN] * np.nan}), "not all finite"),
]


@pytest.mark.parametrize(("tamper", "words"), [case[1:] for case in ODD], ids=[case[0] for case in ODD])
def test_odd_public_arrays_are_refused_before_data_are_read_or_anything_is_kept(
    server: Any, loads: list[str], caplog: pytest.LogCaptureFixture, tamper: Tamper, words: str
) -> None:
    public = public_of(server)
    tamper(public)
    refused = answer(server, request(server, public, along=True))
    assert refused == Reply({records.SITE: "north", records.STATUS: records.REFUSED_POLICY})
    assert (server.spent, loads, kept(server)) == (False, [], [])
    assert words in caplog.text


@pytest.mark.parametrize("digest", ["", "0" * 64, "../../site", "A" * 64])
def test_arrays_under_another_hash_than_their_own_are_refused(server: Any, loads: list[str], digest: str) -> None:
    refused = answer(server, request(server, public_of(server), along=True, digest=digest))
    assert refused.config[records.STATUS] == records.REFUSED_POLICY
    assert (server.spent, loads, kept(server)) == (False, [], [])


def test_arrays_kept_for_another_network_are_refused(server: Any, loads: list[str]) -> None:
    public = public_of(server)
    answer(server, request(server, public, along=True))
    events, read = server.events, list(loads)
    other = server.asking("generator.channels=[16,16]")
    refused = answer(other, request(other, public, along=False))
    assert refused.config[records.STATUS] == records.REFUSED_POLICY
    assert (other.events, loads) == (events, read)


def test_a_network_without_public_arrays_takes_no_hash(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_round, "build_model", WHOLE)
    refused = answer(server, server.request(public_arrays="0" * 64))
    assert refused.config[records.STATUS] == records.REFUSED_POLICY


def test_public_arrays_count_against_the_sites_limits(server: Any, loads: list[str]) -> None:
    model = local_round.build_model(server.settings, plan.GENERATOR)
    trained = sum(value.size for value in local_round.trainable_arrays(model).values())
    small = server.at(largest_parameters=trained)
    for along in (True, False):
        refused = answer(small, request(small, public_of(small), along=along))
        assert refused.config[records.STATUS] == records.REFUSED_POLICY
    assert (small.spent, loads) == (False, [])


def test_a_site_keeps_only_the_last_few(server: Any) -> None:
    for number in range(KEPT + 2):
        public = {name: value + number for name, value in public_of(server).items()}
        answer(server, request(server, public, along=True))
    assert len(kept(server)) == KEPT
    assert messages.digest_of(public) in {file.stem for file in kept(server)}
