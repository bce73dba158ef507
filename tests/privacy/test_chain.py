"""Lines changed, moved or dropped and heads that do not fit are refused; restoring both files is not seen."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fedmedgen.errors import LedgerError
from fedmedgen.privacy.budget import Plan
from fedmedgen.privacy.ledger import Ledger, Limit, load_or_create_key, spending_in

Opened = Callable[[], Ledger]
LIMIT = Limit(epsilon=10.0, delta=1e-3)


def open_plan(ledger: Ledger, plan: Plan, run: str, epsilon: float) -> None:
    ledger.open_plan(run, plan.digest, plan.to_mapping(), epsilon=epsilon, delta=1e-5, limit=LIMIT)


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


def test_a_snapshot_can_be_read_without_key_and_head(filled: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "run" / "ledger.jsonl"
    snapshot.parent.mkdir()
    shutil.copy(filled, snapshot)
    assert spending_in(snapshot, key=None, head_path=None).epsilon == 5.0
    lines = snapshot.read_bytes().splitlines(keepends=True)
    snapshot.write_bytes(b"".join([lines[0], *lines[2:]]))
    with pytest.raises(LedgerError, match="line 2"):
        spending_in(snapshot, key=None, head_path=None)
