"""Tampering is refused by line, a crash at any byte costs at least what was meant, restoring both files is not seen."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedmedgen.errors import BudgetError, LedgerError
from fedmedgen.privacy import ledger as ledger_module
from fedmedgen.privacy.budget import Plan
from fedmedgen.privacy.ledger import Ledger, Limit, load_or_create_key, spending_in
from fedmedgen.privacy.spending import torn_cost

Opened = Callable[[], Ledger]
LIMIT = Limit(epsilon=10.0, delta=1e-3)


def open_plan(ledger: Ledger, plan: Plan, run: str, epsilon: float) -> None:
    ledger.open_plan(run, plan.digest, plan.to_mapping(), epsilon=epsilon, delta=1e-5, limit=LIMIT)


@pytest.fixture
def filled(open_ledger: Opened, plan: Plan, tmp_path: Path) -> Path:
    """A ledger of five lines: open, reserve, complete, reserve, open."""
    ledger = open_ledger()
    open_plan(ledger, plan, "run-1", 2.0)
    ledger.reserve("run-1", plan.digest, "generator", 10, "request-1")
    ledger.complete("request-1", "reply")
    ledger.reserve("run-1", plan.digest, "generator", 20, "request-2")
    open_plan(ledger, plan, "run-2", 3.0)
    return tmp_path / "ledger.jsonl"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_changed_byte_is_refused(filled: Path, open_ledger: Opened, data: st.DataObject) -> None:
    whole = filled.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 2))
    other = data.draw(st.integers(0, 255).filter(lambda byte: byte != whole[place]))
    filled.write_bytes(whole[:place] + bytes([other]) + whole[place + 1 :])
    try:
        with pytest.raises(LedgerError, match="line"):
            open_ledger().spent()
    finally:
        filled.write_bytes(whole)
    assert open_ledger().spent().epsilon == 5.0


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_a_changed_line_is_named(filled: Path, open_ledger: Opened, number: int) -> None:
    lines = filled.read_bytes().splitlines(keepends=True)
    lines[number - 1] = lines[number - 1].replace(b'"at":1', b'"at":2')
    filled.write_bytes(b"".join(lines))
    with pytest.raises(LedgerError, match=f"line {number} of the ledger is broken"):
        open_ledger().find("request-1")


@pytest.mark.parametrize("kept", [0, 1, 2, 3, 4])
def test_a_shorter_chain_is_refused(filled: Path, open_ledger: Opened, kept: int) -> None:
    filled.write_bytes(b"".join(filled.read_bytes().splitlines(keepends=True)[:kept]))
    with pytest.raises(LedgerError, match=f"has {kept} whole lines but its head says 5"):
        open_ledger().spent()


def test_a_deleted_ledger_is_refused_while_its_head_is_there(filled: Path, open_ledger: Opened, plan: Plan) -> None:
    filled.unlink()
    with pytest.raises(LedgerError, match="cut off"):
        open_plan(open_ledger(), plan, "run-3", 1.0)
    with pytest.raises(LedgerError, match="cut off"):
        open_ledger().spent()


@pytest.mark.parametrize("order", [(1, 0, 2, 3, 4), (0, 1, 3, 4), (0, 1, 1, 2, 3, 4), (0, 1, 2, 4, 3)])
def test_lines_moved_dropped_or_doubled_are_refused(filled: Path, open_ledger: Opened, order: tuple[int, ...]) -> None:
    lines = filled.read_bytes().splitlines(keepends=True)
    filled.write_bytes(b"".join(lines[index] for index in order))
    with pytest.raises(LedgerError):
        open_ledger().spent()


def test_a_deleted_head_is_refused(filled: Path, open_ledger: Opened) -> None:
    filled.with_suffix(".head").unlink()
    with pytest.raises(LedgerError, match="head was lost"):
        open_ledger().spent()


def test_an_older_head_is_refused(filled: Path, open_ledger: Opened, plan: Plan) -> None:
    old = filled.with_suffix(".head").read_bytes()
    open_ledger().reserve("run-1", plan.digest, "generator", 1, "a")
    open_ledger().reserve("run-1", plan.digest, "generator", 1, "b")
    filled.with_suffix(".head").write_bytes(old)
    with pytest.raises(LedgerError, match="older"):
        open_ledger().spent()


@pytest.mark.parametrize("count", [2, 4, 6])
def test_a_head_changed_by_hand_is_refused(filled: Path, open_ledger: Opened, count: int) -> None:
    head = filled.with_suffix(".head")
    head.write_text(json.dumps({**json.loads(head.read_text()), "count": count}))
    with pytest.raises(LedgerError, match="not written under this key"):
        open_ledger().spent()


def test_a_head_that_is_no_head_is_refused(filled: Path, open_ledger: Opened) -> None:
    filled.with_suffix(".head").write_text("{}")
    with pytest.raises(LedgerError, match="count, last and seal"):
        open_ledger().spent()


@pytest.mark.parametrize("head", ["ledger.head", "none.head"])
def test_a_ledger_of_another_key_is_refused_and_left_as_it_was(
    filled: Path, tmp_path: Path, plan: Plan, head: str
) -> None:
    whole = filled.read_bytes()
    stranger = Ledger(filled, key=load_or_create_key(tmp_path / "other"), head_path=tmp_path / head)
    with pytest.raises(LedgerError, match=r"own key|under this key"):
        stranger.spent()
    with pytest.raises(LedgerError, match=r"own key|under this key"):
        open_plan(stranger, plan, "run-9", 1.0)
    assert filled.read_bytes() == whole


def test_a_chain_of_the_same_key_with_another_head_is_refused(filled: Path, tmp_path: Path, plan: Plan) -> None:
    key = load_or_create_key(tmp_path / "ledger.key")
    other = Ledger(tmp_path / "other.jsonl", key=key, head_path=tmp_path / "other.head")
    for number in range(5):
        open_plan(other, plan, f"run-{number}", 0.1)
    with pytest.raises(LedgerError, match="another chain"):
        Ledger(filled, key=key, head_path=tmp_path / "other.head").spent()


def test_restoring_both_files_is_not_seen_as_the_documents_say(filled: Path, open_ledger: Opened, plan: Plan) -> None:
    head = filled.with_suffix(".head")
    old = filled.read_bytes(), head.read_bytes()
    open_plan(open_ledger(), plan, "run-3", 4.0)
    filled.write_bytes(old[0])
    head.write_bytes(old[1])
    assert open_ledger().spent().epsilon == 5.0


def crash(filled: Path, before: bytes, head_before: bytes, after: bytes) -> None:
    """The files as a crash leaves them: some bytes of the last line, and the head not yet written."""
    filled.write_bytes(before + after)
    filled.with_suffix(".head").write_bytes(head_before)


def test_a_plan_torn_at_any_byte_costs_its_epsilon_or_all_that_remains(
    filled: Path, open_ledger: Opened, plan: Plan
) -> None:
    head = filled.with_suffix(".head")
    before, head_before = filled.read_bytes(), head.read_bytes()
    open_plan(open_ledger(), plan, "run-3", 4.0)
    line = filled.read_bytes()[len(before) :]
    outcomes = set()
    for length in range(1, len(line), 3):
        crash(filled, before, head_before, line[:length])
        spent = open_ledger().spent()
        outcomes.add((spent.epsilon, spent.closed))
    assert outcomes == {(10.0, True), (9.0, False)}
    crash(filled, before, head_before, b"")
    assert open_ledger().spent().epsilon == 5.0


def test_steps_torn_at_any_byte_cost_those_steps_or_all_that_remains(
    filled: Path, open_ledger: Opened, plan: Plan
) -> None:
    head = filled.with_suffix(".head")
    before, head_before = filled.read_bytes(), head.read_bytes()
    open_ledger().reserve("run-1", plan.digest, "generator", 7, "request-3")
    line = filled.read_bytes()[len(before) :]
    for length in range(1, len(line), 3):
        crash(filled, before, head_before, line[:length])
        spent = open_ledger().spent()
        assert spent.closed or spent.plans["run-1", plan.digest].reserved["generator"] == 37


@pytest.mark.parametrize("length", [1, 40, 130, 155, 200, 400])
def test_after_a_torn_line_is_mended_the_same_is_spent_and_the_chain_is_whole(
    filled: Path, open_ledger: Opened, plan: Plan, length: int
) -> None:
    before, head_before = filled.read_bytes(), filled.with_suffix(".head").read_bytes()
    open_plan(open_ledger(), plan, "run-3", 4.0)
    crash(filled, before, head_before, filled.read_bytes()[len(before) :][:length])
    torn = open_ledger().spent()
    if torn.closed:
        with pytest.raises(BudgetError, match="all that remained is spent"):
            open_ledger().reserve("run-1", plan.digest, "generator", 1, "request-4")
    else:
        open_ledger().reserve("run-1", plan.digest, "generator", 1, "request-4")
    mended = open_ledger().spent()
    assert (mended.epsilon, mended.delta, mended.closed) == (torn.epsilon, torn.delta, torn.closed)
    assert filled.read_bytes().startswith(before)
    assert b'"event":"torn"' in filled.read_bytes()


def test_a_ledger_closed_by_a_torn_line_stays_closed_under_any_limit(
    filled: Path, open_ledger: Opened, plan: Plan
) -> None:
    with filled.open("ab") as file:
        file.write(b"\x00\x00\x00")
    for limit in (LIMIT, Limit(1e6, 1.0)):
        with pytest.raises(BudgetError, match="can't be read"):
            open_ledger().open_plan("run-9", plan.digest, plan.to_mapping(), epsilon=0.1, delta=1e-6, limit=limit)


def test_a_torn_completion_leaves_its_request_spent_but_not_answered(
    filled: Path, open_ledger: Opened, plan: Plan
) -> None:
    before, head_before = filled.read_bytes(), filled.with_suffix(".head").read_bytes()
    open_ledger().complete("request-2", "reply")
    crash(filled, before, head_before, filled.read_bytes()[len(before) : -10])
    assert open_ledger().find("request-2") == "reserved"
    assert open_ledger().spent().epsilon == 5.0
    open_ledger().complete("request-2", "reply")
    assert open_ledger().find("request-2") == "complete"


def test_a_crash_between_ledger_and_head_loses_nothing(filled: Path, open_ledger: Opened, plan: Plan) -> None:
    for ending in (b"\n", b""):
        before, head_before = filled.read_bytes(), filled.with_suffix(".head").read_bytes()
        open_plan(open_ledger(), plan, f"run-{ending!r}", 1.0)
        crash(filled, before, head_before, filled.read_bytes()[len(before) : -1] + ending)
        spent = open_ledger().spent().epsilon
        open_ledger().reserve("run-1", plan.digest, "generator", 1, f"after-{ending!r}")
        assert open_ledger().spent().epsilon == spent
    assert spent == 7.0


def test_a_second_crash_while_mending_is_mended_too(filled: Path, open_ledger: Opened, plan: Plan) -> None:
    before, head_before = filled.read_bytes(), filled.with_suffix(".head").read_bytes()
    open_plan(open_ledger(), plan, "run-3", 1.0)
    fragment = filled.read_bytes()[len(before) :][:200]
    crash(filled, before, head_before, fragment)
    open_ledger().reserve("run-1", plan.digest, "generator", 1, "request-4")
    mending = filled.read_bytes()[len(before) + len(fragment) :]
    for length in range(1, mending.index(b"\n", 1) - 1, 7):
        crash(filled, before, head_before, fragment + mending[:length])
        assert open_ledger().spent().closed
        with pytest.raises(BudgetError):
            open_ledger().reserve("run-1", plan.digest, "generator", 1, "request-5")
        assert open_ledger().spent().closed


def test_the_first_line_of_all_may_be_torn(open_ledger: Opened, plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "ledger.jsonl").write_bytes(b'{"n":1,"pr')
    assert open_ledger().spent().closed
    with pytest.raises(BudgetError):
        open_plan(open_ledger(), plan, "run", 1.0)


def test_the_line_is_synced_before_the_head_and_both_before_the_caller_goes_on(
    open_ledger: Opened, plan: Plan, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    synced = []
    real = os.fsync

    def watched(handle: int) -> None:
        synced.append(Path(f"/proc/self/fd/{handle}").readlink().name)
        real(handle)

    ledger = open_ledger()
    monkeypatch.setattr(os, "fsync", watched)
    open_plan(ledger, plan, "run", 1.0)
    assert synced == ["ledger.jsonl", "ledger.head.new", tmp_path.name]


def test_a_full_disk_refuses_the_reservation(
    filled: Path, open_ledger: Opened, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    ledger = open_ledger()
    monkeypatch.setattr(ledger_module.os, "write", full)
    with pytest.raises(LedgerError, match=r"No space left on device.*nothing was reserved"):
        ledger.reserve("run-1", plan.digest, "generator", 1, "request-9")
    monkeypatch.undo()
    assert open_ledger().find("request-9") == "unknown"


def test_a_snapshot_can_be_read_without_key_and_head(filled: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "run" / "ledger.jsonl"
    snapshot.parent.mkdir()
    shutil.copy(filled, snapshot)
    assert spending_in(snapshot, key=None, head_path=None).epsilon == 5.0
    lines = snapshot.read_bytes().splitlines(keepends=True)
    snapshot.write_bytes(b"".join([lines[0], *lines[2:]]))
    with pytest.raises(LedgerError, match="line 2"):
        spending_in(snapshot, key=None, head_path=None)


@pytest.mark.parametrize("number", ["nan", "inf", "-1.0", "1e", "1.2.3", ""])
def test_a_torn_amount_that_is_no_amount_costs_all(number: str) -> None:
    start = '{"n":1,"prev":"' + "0" * 64 + '","event":"open","epsilon":'
    assert torn_cost(f'{start}{number},"delta":1e-05,'.encode()) == {"all": True}
    assert torn_cost(f'{start}2.5,"delta":1e-05,'.encode()) == {"epsilon": 2.5, "delta": 1e-5}
    assert torn_cost(f'{start}2.5,"delta":1e-0'.encode()) == {"all": True}
