"""The security log: every line whole, whatever the disk, a crash or another process does."""

import json
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from fedmedgen.deployment import security_log


def events(folder: Path) -> list[str]:
    return [json.loads(line)["event"] for line in (folder / security_log.NAME).read_text().splitlines()]


@pytest.mark.parametrize("taken", [0, 1, 20])
def test_a_disk_that_fills_up_leaves_no_part_of_a_line_and_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: int
) -> None:
    security_log.note(tmp_path, "asked")
    whole = os.write
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", lambda handle, data: whole(handle, data[:taken]))
        with pytest.raises(OSError, match="No space left"):
            security_log.note(tmp_path, "sent")
    security_log.note(tmp_path, "refused")
    assert events(tmp_path) == ["asked", "refused"]


def test_a_line_that_a_crash_cut_short_does_not_run_into_the_next(tmp_path: Path) -> None:
    (tmp_path / security_log.NAME).write_text('{"event": "as')
    security_log.note(tmp_path, "sent")
    torn, line = (tmp_path / security_log.NAME).read_text().splitlines()
    assert torn == '{"event": "as'
    assert json.loads(line)["event"] == "sent"


def fill(folder: Path) -> None:
    for _ in range(100):
        security_log.note(folder, "asked", words="x" * 500)


def test_lines_of_several_processes_do_not_mix(tmp_path: Path) -> None:
    with ProcessPoolExecutor(3, mp_context=get_context("spawn")) as pool:
        list(pool.map(fill, [tmp_path] * 3))
    assert events(tmp_path) == ["asked"] * 300
