"""A run folder: whole or absent, and no two runs in one."""

from pathlib import Path

import numpy as np
import pytest

from fedmedgen.composition import compose
from fedmedgen.errors import RunError
from fedmedgen.federation.messages import deciding
from server import run_store
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


def test_the_last_two_rounds_are_kept(store: RunStore) -> None:
    for number in (1, 2, 3):
        store.save(checkpoint(number))
    kept = sorted(file.name for file in (store.folder / "checkpoint").iterdir())
    assert kept == ["generator-2.safetensors", "generator-3.safetensors"]


def spoil(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "a byte":
        content[-5] ^= 1
    path.write_bytes({"a byte": content, "cut": content[:-9], "empty": b"", "junk": b"junk"}[how])


@pytest.mark.parametrize(
    ("file", "how"),
    [
        *[("checkpoint/generator-3.safetensors", how) for how in ("a byte", "cut", "empty", "junk")],
        *[("checkpoint.json", how) for how in ("cut", "empty", "junk")],
    ],
)
def test_a_spoiled_checkpoint_is_left_for_the_one_before(
    store: RunStore, file: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    for number in (1, 2, 3):
        store.save(checkpoint(number))
    spoil(store.folder / file, how)
    found = store.latest()
    assert found is not None
    np.testing.assert_array_equal(found.groups["weights"]["a.b"], np.full((2, 2), 2, np.float32))
    assert (found.round, found.rows) == (2, checkpoint(2).rows)
    assert "spoiled" in caplog.text
    store.save(checkpoint(3))
    found = store.latest()
    assert found is not None
    assert found.round == 3


def test_without_a_whole_checkpoint_nothing_goes_on(store: RunStore) -> None:
    for number in (1, 2):
        store.save(checkpoint(number))
    for path in (store.folder / "checkpoint").iterdir():
        spoil(path, "a byte")
    with pytest.raises(RunError, match="begin the study anew"):
        store.latest()


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


def test_a_run_keeps_its_name_under_code_that_would_name_it_otherwise(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sites know a run, and what they have spent on it, by its name."""
    monkeypatch.setattr(run_store, "run_name", lambda _: "another")
    assert RunStore.reopen(store.folder).run == store.run
    (store.folder / "run").unlink()  # as older code left it
    assert RunStore.reopen(store.folder).run == "another"


def test_settings_that_say_nothing_leave_a_plain_studys_words_as_they_were() -> None:
    words = deciding(compose(["study=demo"]))
    assert not {"aggregation", "colluders", "masks", "threshold", "attempts"} & set(words["federation"])
    assert "largest_sites" not in words["data"]
    assert (
        deciding(compose(["study=demo", "data.partition=even", "data.largest_sites=2"]))["data"]["largest_sites"] == 2
    )


def test_the_runs_name_depends_on_what_decides_its_result_alone() -> None:
    here = run_name(compose(["study=demo"]))
    assert run_name(compose(["study=demo", "backend=flower", "out=x", "ledger.root=y"])) == here
    assert run_name(compose(["study=demo", "rounds=9"])) != here
