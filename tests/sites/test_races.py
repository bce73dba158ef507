"""Two processes of one site that want the last of its budget: one gets it."""

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message, MessageType, RecordDict

from fedmedgen.federation import messages, records
from sites.app import app

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

    policy = Path(last.policy.folder).with_name("policy.yaml")
    last.policy.write(policy)

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
