"""Nothing is computed before line and head are on disk; where they can not be written, nothing is reserved."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fedmedgen.errors import LedgerError
from fedmedgen.privacy import ledger as ledger_module
from fedmedgen.privacy.budget import Plan
from fedmedgen.privacy.ledger import Ledger, Limit, load_or_create_key

Opened = Callable[[], Ledger]
LIMIT = Limit(epsilon=10.0, delta=1e-3)


def open_plan(ledger: Ledger, plan: Plan, run: str, epsilon: float) -> None:
    ledger.open_plan(run, plan.digest, plan.to_mapping(), epsilon=epsilon, delta=1e-5, limit=LIMIT)


def test_the_line_is_synced_before_the_head_is_replaced_and_both_before_the_caller_goes_on(
    open_ledger: Opened, plan: Plan, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    done = []
    fsync, replace = os.fsync, Path.replace

    def synced(handle: int) -> None:
        done.append("fsync " + Path(f"/proc/self/fd/{handle}").readlink().name)
        fsync(handle)

    def replaced(old: Path, new: Path) -> Path:
        done.append(f"replace {new.name}")
        return replace(old, new)

    ledger = open_ledger()
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    open_plan(ledger, plan, "run", 1.0)
    folder = f"fsync {tmp_path.name}"
    assert done == [folder, "fsync ledger.head.new", "fsync ledger.jsonl", "replace ledger.head", folder]


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


@pytest.fixture
def apart(tmp_path: Path, plan: Plan) -> Ledger:
    """A ledger of two lines whose head lies in a folder of its own, made when it was first needed."""
    key = load_or_create_key(tmp_path / "ledger.key")
    ledger = Ledger(tmp_path / "site" / "ledger.jsonl", key=key, head_path=tmp_path / "disk" / "deep" / "north.head")
    open_plan(ledger, plan, "run-1", 2.0)
    ledger.reserve("run-1", plan.digest, "generator", 5, "request-1")
    return ledger


def test_a_head_kept_elsewhere_refuses_a_shorter_and_an_older_chain(apart: Ledger, plan: Plan, tmp_path: Path) -> None:
    site, old = tmp_path / "site", tmp_path / "old"
    shutil.copytree(site, old)
    for number in range(2):
        apart.reserve("run-1", plan.digest, "generator", 5, f"later-{number}")
        whole = (site / "ledger.jsonl").read_bytes()
        (site / "ledger.jsonl").write_bytes((old / "ledger.jsonl").read_bytes())
        for act in (apart.spent, lambda: apart.reserve("run-1", plan.digest, "generator", 1, "again")):
            with pytest.raises(LedgerError, match="cut off after line 2"):
                act()
        (site / "ledger.jsonl").write_bytes(whole)
    assert apart.spent().plans["run-1", plan.digest].reserved["generator"] == 15


def test_rolling_back_both_is_not_seen_wherever_the_head_lies(apart: Ledger, plan: Plan, tmp_path: Path) -> None:
    old = {path: path.read_bytes() for path in (*(tmp_path / "site").iterdir(), tmp_path / "disk/deep/north.head")}
    apart.reserve("run-1", plan.digest, "generator", 5, "later")
    for path, data in old.items():
        path.write_bytes(data)
    assert apart.spent().plans["run-1", plan.digest].reserved["generator"] == 5


def test_every_folder_that_is_made_and_every_file_in_it_is_synced(
    tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = set()
    fsync = os.fsync

    def watched(handle: int) -> None:
        synced.add(str(Path(f"/proc/self/fd/{handle}").readlink().relative_to(tmp_path)))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", watched)
    key = load_or_create_key(tmp_path / "state" / "key")
    open_plan(Ledger(tmp_path / "state/ledger.jsonl", key=key, head_path=tmp_path / "a/b/head"), plan, "run", 1.0)
    assert {".", "state", "state/ledger.jsonl", "a", "a/b", "a/b/head.new"} <= synced


@pytest.mark.parametrize("lost", ["head's folder", "ledger's folder"])
def test_where_a_folder_cannot_be_written_nothing_is_reserved(
    apart: Ledger, plan: Plan, tmp_path: Path, lost: str
) -> None:
    before = (tmp_path / "site" / "ledger.jsonl").read_bytes()
    folder = tmp_path / ("disk" if lost == "head's folder" else "site")
    folder.rename(tmp_path / "away")
    folder.write_text("no folder")
    with pytest.raises(LedgerError, match=r"can't be (written|read)"):
        apart.reserve("run-1", plan.digest, "generator", 5, "later")
    folder.unlink()
    (tmp_path / "away").rename(folder)
    assert (tmp_path / "site" / "ledger.jsonl").read_bytes() == before
    assert apart.find("later") == "unknown"


@pytest.mark.parametrize("call", ["write", "fsync", "open"])
def test_a_head_that_cannot_be_drafted_is_found_before_the_line_is_written(
    apart: Ledger, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    before, real = (tmp_path / "site" / "ledger.jsonl").read_bytes(), getattr(os, call)

    def full(what: object, *more: object) -> object:
        name = str(what) if isinstance(what, Path) else str(Path(f"/proc/self/fd/{what}").readlink())
        if name.endswith("north.head.new"):
            raise OSError(28, "No space left on device")
        return real(what, *more)

    monkeypatch.setattr(os, call, full)
    with pytest.raises(LedgerError, match=r"north\.head can't be written \(No space left.*nothing was reserved"):
        apart.reserve("run-1", plan.digest, "generator", 5, "later")
    monkeypatch.undo()
    assert (tmp_path / "site" / "ledger.jsonl").read_bytes() == before


def test_a_head_that_cannot_be_replaced_leaves_the_spend_and_the_next_call_sets_it_right(
    apart: Ledger, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(old: Path, new: Path) -> Path:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "replace", refused)
    with pytest.raises(LedgerError, match="is spent and nothing was computed"):
        apart.reserve("run-1", plan.digest, "generator", 5, "later")
    monkeypatch.undo()
    assert apart.find("later") == "reserved"
    apart.reserve("run-1", plan.digest, "generator", 5, "last")
    assert apart.spent().plans["run-1", plan.digest].reserved["generator"] == 15
