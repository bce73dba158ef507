"""Stored replies: whole and noted in the ledger they go out again free, otherwise they count as not stored."""

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.common.serde import recorddict_to_proto
from safetensors.numpy import load

from fedmedgen.federation import local_round, records
from fedmedgen.federation.egress import Reply
from fedmedgen.privacy.chain import digest_of
from fedmedgen.privacy.ledger import Ledger, Limit, load_or_create_key
from sites.replies import KEPT, ReplyStore

FIRST, SECOND = "1" * 64, "2" * 64
MAPPING = {"stages": [{"name": "generator", "steps": 100}]}


def reply(value: float = 1.0) -> Reply:
    return Reply({"status": "done"}, {"weight": 30.0}, {"w": np.full((2, 3), value, np.float32)})


def same(one: Reply | None, other: Reply | None) -> bool:
    if one is None or other is None:
        return one is other
    arrays = one.arrays.keys() == other.arrays.keys() and all(
        np.array_equal(one.arrays[name], other.arrays[name]) for name in one.arrays
    )
    return arrays and (one.config, one.metrics) == (other.config, other.metrics)


@pytest.fixture
def store(tmp_path: Path) -> ReplyStore:
    return ReplyStore(tmp_path / "replies")


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """A ledger in which the first request is reserved."""
    made = Ledger(
        tmp_path / "ledger.jsonl", key=load_or_create_key(tmp_path / "key"), head_path=tmp_path / "ledger.head"
    )
    plan = digest_of(MAPPING)
    made.open_plan("run", plan, MAPPING, epsilon=1.0, delta=1e-6, limit=Limit(10.0, 1e-3))
    made.reserve("run", plan, "generator", 1, FIRST)
    return made


def files(folder: Path) -> list[Path]:
    """All but the locks, which are empty."""
    assert not any(lock.stat().st_size for lock in folder.glob(".lock-*"))
    return sorted(folder.glob("[!.]*"))


def damaged(whole: bytes) -> Iterator[bytes]:
    """Each byte replaced, deleted, or preceded by another; and the file cut short."""
    for place, byte in enumerate(whole):
        yield whole[:place] + bytes([byte ^ 1]) + whole[place + 1 :]
        yield whole[:place] + whole[place + 1 :]
        yield whole[:place] + bytes([byte ^ 1]) + whole[place:]
    yield whole + b"\0"
    yield b""


def test_what_was_stored_is_found_again_to_the_last_bit(store: ReplyStore) -> None:
    store.store(FIRST, reply(np.float32(1 / 3)))
    assert same(store.find(FIRST), reply(np.float32(1 / 3)))
    assert store.find(SECOND) is None


def test_a_stored_reply_damaged_in_any_byte_counts_as_not_stored(store: ReplyStore, ledger: Ledger) -> None:
    ledger.complete(FIRST, store.store(FIRST, reply()))
    (place,) = files(store.folder)
    whole = place.read_bytes()
    for data in damaged(whole):
        with place.open("r+b") as file:
            file.write(data)
            file.truncate()
        assert store.find(FIRST) is None
        assert store.paid(FIRST, ledger) is None
    place.write_bytes(whole)
    assert same(store.paid(FIRST, ledger), reply())


def test_the_reply_to_another_request_is_never_given(store: ReplyStore, ledger: Ledger) -> None:
    seal = store.store(SECOND, reply())
    (place,) = files(store.folder)
    place.rename(store.folder / f"{FIRST}.{seal}.reply")
    assert store.find(FIRST) is None
    assert store.paid(FIRST, ledger) is None


def test_a_whole_reply_that_is_not_the_one_the_ledger_notes_is_never_given(store: ReplyStore, ledger: Ledger) -> None:
    ledger.complete(FIRST, store.store(FIRST, reply(1.0)))
    (noted,) = files(store.folder)
    store.store(FIRST, reply(2.0))
    assert same(store.paid(FIRST, ledger), reply(1.0))
    noted.unlink()
    assert store.paid(FIRST, ledger) is None


def test_a_stored_reply_whose_spend_is_not_in_the_ledger_is_not_given(store: ReplyStore, ledger: Ledger) -> None:
    store.store(SECOND, reply())
    assert store.paid(SECOND, ledger) is None
    assert ledger.find(SECOND) == "unknown"


def test_a_stored_reply_that_was_not_noted_is_noted_and_given(store: ReplyStore, ledger: Ledger) -> None:
    seal = store.store(FIRST, reply())
    assert same(store.paid(FIRST, ledger), reply())
    assert ledger.spent().replies == {FIRST: seal}


def test_only_the_last_few_replies_are_kept(store: ReplyStore) -> None:
    for number in range(KEPT + 2):
        store.store(f"{number:064d}", reply())
        os.utime(files(store.folder)[-1], (number, number))
    assert [place.name[:64] for place in files(store.folder)] == [f"{number:064d}" for number in range(2, KEPT + 2)]


def test_the_draft_of_a_crash_is_swept_away_later_and_a_living_one_is_not(store: ReplyStore) -> None:
    store.store(FIRST, reply())
    (store.folder / "old.1.draft").write_bytes(b"")
    (store.folder / "new.2.draft").write_bytes(b"")
    os.utime(store.folder / "old.1.draft", (0, 0))
    store.store(SECOND, reply())
    assert [place.name for place in store.folder.glob("*.draft")] == ["new.2.draft"]


def test_a_stored_reply_is_on_disk_before_it_has_its_name_and_its_owners_alone(
    store: ReplyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def synced(handle: int) -> None:
        done.append("fsync " + Path(f"/proc/self/fd/{handle}").readlink().suffix)
        fsync(handle)

    def replaced(old: Path, new: Path) -> Path:
        done.append(f"replace {new.suffix}")
        return replace(old, new)

    store.folder.mkdir()
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    store.store(FIRST, reply())
    assert done == ["fsync .draft", "replace .reply", "fsync "]
    assert [stat.S_IMODE(place.stat().st_mode) for place in files(store.folder)] == [0o600]


def replies_of(server: Any) -> Path:
    return Path(server.policy.folder) / "replies"


def crash(*_: object, **__: object) -> None:
    raise SystemExit


@pytest.mark.parametrize(
    ("place", "name", "events"),
    [
        (local_round, "run", ["open", "reserve", "reserve", "complete"]),
        (Path, "replace", ["open"]),
        (ReplyStore, "store", ["open", "reserve", "reserve", "complete"]),
        (Ledger, "complete", ["open", "reserve", "complete"]),
    ],
    ids=["in the round", "at the first head", "before the reply is stored", "before it is noted"],
)
def test_a_crash_costs_what_was_reserved_and_a_stored_reply_is_free(
    server: Any, monkeypatch: pytest.MonkeyPatch, place: Any, name: str, events: Sequence[str]
) -> None:
    server.create()
    with monkeypatch.context() as patched:
        patched.setattr(place, name, crash)
        with pytest.raises(SystemExit):
            server.ask()
    stored = files(replies_of(server)) if replies_of(server).is_dir() else []
    first = server.ask()
    assert first.config[records.STATUS] == records.DONE
    assert list(server.events) == (events if events != ["open"] else ["open", "reserve", "complete"])
    assert same(server.ask(), first)
    if stored:
        assert files(replies_of(server)) == stored


def test_a_damaged_reply_is_a_new_spend_and_the_log_says_so(server: Any, caplog: pytest.LogCaptureFixture) -> None:
    first = server.ask()
    (place,) = files(replies_of(server))
    place.write_bytes(place.read_bytes()[:-1] + b"?")
    second = server.ask()
    assert not same(first, second)
    assert "damaged: it counts as not stored" in caplog.text
    assert list(server.events) == ["open", "reserve", "complete", "reserve", "complete"]
    assert same(server.ask(), second)


def test_a_stored_reply_that_the_policy_lets_out_no_more_is_a_new_spend_and_the_log_says_so(
    server: Any, caplog: pytest.LogCaptureFixture
) -> None:
    first = server.ask()
    more = server.at(patients_declared=31, lifetime_epsilon=20.0, lifetime_delta=2e-5)
    second = more.ask()
    assert [reply.metrics[records.WEIGHT] for reply in (first, second)] == [30.0, 31.0]
    assert "may not leave any more, so asking is a new spend: 'num-examples' may leave only as" in caplog.text
    assert list(server.events) == ["open", "reserve", "complete"] * 2
    assert same(more.ask(), second)


def test_a_replayed_reply_has_the_bytes_of_the_first_on_the_wire(server: Any) -> None:
    first, second = (recorddict_to_proto(server.send(server.request()).content) for _ in range(2))
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)
    assert list(server.events) == ["open", "reserve", "complete"]


def test_nothing_is_stored_but_the_finished_reply_no_noise_and_no_seed(server: Any) -> None:
    sent = server.ask()
    folder = Path(server.policy.folder)
    (place,) = files(replies_of(server))
    assert {path.name for path in folder.iterdir()} == {
        "ledger.jsonl",
        "ledger.head",
        "site.key",
        "replies",
        "held-out",
        "security.jsonl",
    }
    noted = (folder / "security.jsonl").read_text()
    assert len(noted) < 4000  # words and hashes, no arrays
    assert "seed" not in noted
    words, _, arrays = place.read_bytes().partition(b"\n")
    assert set(load(arrays)) == set(sent.arrays)
    assert all(np.array_equal(value, sent.arrays[name]) for name, value in load(arrays).items())
    assert words.count(b":") == 3 + len(sent.config) + len(sent.metrics)
    assert len(arrays) < sum(array.nbytes for array in sent.arrays.values()) + 200 * len(sent.arrays)
