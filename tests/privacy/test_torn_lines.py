"""A line torn by a crash costs at least what was meant, is mended, and never makes a good chain refused."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fedmedgen.errors import BudgetError
from fedmedgen.privacy.budget import Plan
from fedmedgen.privacy.ledger import Ledger, Limit
from fedmedgen.privacy.spending import torn_cost

Opened = Callable[[], Ledger]
LIMIT = Limit(epsilon=10.0, delta=1e-3)


def open_plan(ledger: Ledger, plan: Plan, run: str, epsilon: float) -> None:
    ledger.open_plan(run, plan.digest, plan.to_mapping(), epsilon=epsilon, delta=1e-5, limit=LIMIT)


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


@pytest.mark.parametrize("number", ["nan", "inf", "-1.0", "1e", "1.2.3", ""])
def test_a_torn_amount_that_is_no_amount_costs_all(number: str) -> None:
    start = '{"n":1,"prev":"' + "0" * 64 + '","event":"open","epsilon":'
    assert torn_cost(f'{start}{number},"delta":1e-05,'.encode()) == {"all": True}
    assert torn_cost(f'{start}2.5,"delta":1e-05,'.encode()) == {"epsilon": 2.5, "delta": 1e-5}
    assert torn_cost(f'{start}2.5,"delta":1e-0'.encode()) == {"all": True}
