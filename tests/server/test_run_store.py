"""A run folder: whole or absent, and no two runs in one."""

from pathlib import Path

import numpy as np
import pytest

from fedmedgen.composition import compose
from fedmedgen.errors import RunError
from server.run_store import Checkpoint, RunStore, run_name


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore.create(compose(["study=demo", f"out={tmp_path / 'run'}"]))


def checkpoint(number: int) -> Checkpoint:
    groups = {"weights": {"a.b": np.full((2, 2), number, np.float32)}, "ema": {"a.b": np.zeros((2, 2), np.float32)}}
    row = {"stage": "generator", "round": number, "site": "a", "status": "done"}
    return Checkpoint("generator", number, groups, [row], 1.5)


def test_a_checkpoint_comes_back_as_it_went(store: RunStore) -> None:
    store.save(checkpoint(1))
    found = store.latest()
    assert found is not None
    np.testing.assert_array_equal(found.groups["weights"]["a.b"], np.full((2, 2), 1, np.float32))
    assert (found.stage, found.round, found.rows, found.seconds) == ("generator", 1, checkpoint(1).rows, 1.5)


def test_only_the_newest_arrays_are_kept(store: RunStore) -> None:
    for number in (1, 2, 3):
        store.save(checkpoint(number))
    assert [file.name for file in (store.folder / "checkpoint").iterdir()] == ["generator-3.safetensors"]


def test_arrays_written_before_a_crash_do_not_disturb_the_last_round(store: RunStore) -> None:
    store.save(checkpoint(1))
    (store.folder / "checkpoint" / "generator-2.safetensors").write_bytes(b"half")
    found = store.latest()
    assert found is not None
    assert found.round == 1


def test_a_folder_with_a_run_is_refused_and_reopened_with_its_own_settings(store: RunStore) -> None:
    store.save(checkpoint(1))
    with pytest.raises(RunError, match="already holds a run"):
        RunStore.create(store.settings)
    again = RunStore.reopen(store.folder)
    assert (again.settings, again.run) == (store.settings, store.run)


def test_the_runs_name_depends_on_what_decides_its_result_alone() -> None:
    here = run_name(compose(["study=demo"]))
    assert run_name(compose(["study=demo", "backend=flower", "out=x", "ledger.root=y"])) == here
    assert run_name(compose(["study=demo", "rounds=9"])) != here
