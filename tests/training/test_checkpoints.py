"""Arrays on disk."""

import os
from pathlib import Path

import pytest
import torch

from fedmedgen.errors import RunError
from fedmedgen.training.checkpoints import load_arrays, load_metadata, save_arrays


def test_arrays_and_their_words_come_back_the_same(tmp_path: Path) -> None:
    arrays = {"a": torch.randn(3, 4), "b": torch.arange(5).float().flip(0)}
    save_arrays(tmp_path / "deep" / "x.safetensors", arrays, {"round": "3"})
    loaded = load_arrays(tmp_path / "deep" / "x.safetensors")
    assert set(loaded) == {"a", "b"}
    assert all(torch.equal(loaded[name], arrays[name]) for name in arrays)
    assert load_metadata(tmp_path / "deep" / "x.safetensors") == {"round": "3"}


def test_a_crash_while_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.safetensors"
    save_arrays(path, {"a": torch.ones(2)})

    def crash(descriptor: int) -> None:
        raise OSError("the power is gone")

    monkeypatch.setattr(os, "fsync", crash)
    with pytest.raises(OSError, match="the power is gone"):
        save_arrays(path, {"a": torch.zeros(2)})
    assert torch.equal(load_arrays(path)["a"], torch.ones(2))


@pytest.mark.parametrize("content", [None, b"", b"not safetensors at all"])
def test_a_missing_or_broken_file_is_an_error_in_words(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "x.safetensors"
    if content is not None:
        path.write_bytes(content)
    for read in (load_arrays, load_metadata):
        with pytest.raises(RunError, match=r"x\.safetensors can't be read"):
            read(path)
