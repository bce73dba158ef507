"""Processes of one site that want the last of its budget, or the same reply: one gets it, or one computes it."""

import hashlib
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message, MessageType, RecordDict
from flwr.common.serde import recorddict_to_proto

from fedmedgen.federation import local_round, messages, records
from sites.app import app
from sites.replies import ReplyStore

RIVALS = 3


def other_run(server: Any, number: int) -> RecordDict:
    return server.request(run=f"rival-{number}")


def other_weights(server: Any, number: int) -> RecordDict:
    """The only round of one run, asked for from other weights: another request."""
    content = server.request()
    arrays = messages.unpack_arrays(content.array_records[records.ARRAYS])
    name = sorted(arrays)[0]
    content[records.ARRAYS] = messages.pack_arrays({**arrays, name: arrays[name] + number / 100})
    return content


@pytest.mark.parametrize("rival", [other_run, other_weights])
def test_of_a_sites_processes_racing_for_the_last_of_its_budget_exactly_one_wins(
    server: Any, rival: Callable[[Any, int], RecordDict]
) -> None:
    last = server.asking("rounds=1", "segmenter.rounds=0")
    fork = multiprocessing.get_context("fork")
    start, answers = fork.Event(), fork.Queue()

    policy = last.create().policy_file

    def race(content: RecordDict) -> None:
        start.wait()
        asked = Message(content, dst_node_id=7, message_type=MessageType.TRAIN)
        answer = app(asked, Context(1, 7, {"policy": str(policy)}, RecordDict(), {}))
        answers.put(messages.unpack_reply(answer.content).config[records.STATUS])

    racers = [fork.Process(target=race, args=(rival(last, number),)) for number in range(RIVALS)]
    for racer in racers:
        racer.start()
    start.set()
    found = [answers.get(timeout=60) for _ in racers]
    for racer in racers:
        racer.join()
    assert sorted(found) == [records.DONE] + [records.REFUSED_BUDGET] * (RIVALS - 1)
    assert list(last.events) == ["open", "reserve", "complete"]


def hash_of(content: RecordDict) -> str:
    return hashlib.sha256(recorddict_to_proto(content).SerializeToString(deterministic=True)).hexdigest()


def test_one_request_asked_twice_at_once_is_computed_once_and_both_get_the_same_bytes(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, content = server.create().policy_file, server.request()
    fork = multiprocessing.get_context("fork")
    computing, answers, plain = fork.Event(), fork.Queue(), local_round.run

    def slow(*asked: Any, **words: Any) -> Any:
        computing.set()
        time.sleep(1.0)  # long enough for the rival to ask
        return plain(*asked, **words)

    def ask(*, wait: bool) -> None:
        if wait:
            computing.wait(60)
        asked = Message(content, dst_node_id=7, message_type=MessageType.TRAIN)
        answer = app(asked, Context(1, 7, {"policy": str(policy)}, RecordDict(), {})).content
        answers.put((answer[records.CONFIG][records.STATUS], hash_of(answer)))

    monkeypatch.setattr(local_round, "run", slow)
    rivals = [fork.Process(target=ask, kwargs={"wait": wait}) for wait in (False, True)]
    for rival in rivals:
        rival.start()
    first, second = (answers.get(timeout=60) for _ in rivals)
    for rival in rivals:
        rival.join()
    assert first[0] == records.DONE
    assert first == second
    assert list(server.events) == ["open", "reserve", "complete"]


def test_a_process_that_dies_in_its_turn_lets_the_next_one_go_on(tmp_path: Path) -> None:
    store, fork = ReplyStore(tmp_path / "replies"), multiprocessing.get_context("fork")
    holding = fork.Event()

    def hold(digest: str) -> None:
        with store.turn(digest):
            holding.set()
            time.sleep(600)

    first, second = (fork.Process(target=hold, args=("ab" * 32,)) for _ in range(2))
    first.start()
    assert holding.wait(30)
    holding.clear()
    second.start()
    assert not holding.wait(0.3)
    with store.turn("cd" * 32):
        pass  # another request waits for nobody
    first.kill()
    assert holding.wait(30)
    second.kill()
    for process in (first, second):
        process.join()
