"""FID by a network that the user supplies: checked before it is run."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedmedgen.data.cases import Case, CaseSet
from fedmedgen.errors import SettingsError
from fedmedgen.evaluation.inception import fid, load
from fedmedgen.evaluation.study import evaluate
from fedmedgen.settings import EvaluationSettings


class Tiny(nn.Module):
    """Means of the picture's quarters, where the real one has 2,048 numbers."""

    def forward(self, x: Tensor, return_features: bool = False) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(x.float(), [2, 2]).flatten(1)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.pt"
    torch.jit.script(Tiny()).save(str(path))
    return path


def some(mean: float, seed: int) -> CaseSet:
    draw = np.random.default_rng(seed)
    images = np.clip(mean + 0.2 * draw.standard_normal((40, 1, 16, 16)), -1, 1).astype(np.float32)
    return CaseSet(tuple(Case(image=image, name=str(n)) for n, image in enumerate(images)), ())


def test_a_set_farther_from_the_real_one_has_a_larger_fid(file: Path) -> None:
    network = load(file, hashlib.sha256(file.read_bytes()).hexdigest())
    near, far = (fid(network, some(mean, 1), some(0.0, 2)) for mean in (0.0, 0.5))
    assert near["n"] == 40
    assert near["features"] == 12
    assert near["fid"] < far["fid"]


@pytest.mark.parametrize("sha256", ["", "0" * 64])
def test_a_file_of_another_hash_is_never_run(file: Path, sha256: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.jit, "load", lambda *_a, **_k: pytest.fail("it was loaded"))
    with pytest.raises(SettingsError, match="not run"):
        load(file, sha256)


def test_no_file_and_no_network_are_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no such file"):
        load(tmp_path / "none.pt", "")
    junk = tmp_path / "junk.pt"
    junk.write_bytes(b"junk")
    with pytest.raises(SettingsError, match="no TorchScript"):
        load(junk, hashlib.sha256(b"junk").hexdigest())


def test_a_study_names_the_file_and_its_hash(file: Path) -> None:
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    settings = EvaluationSettings(inception=str(file), inception_sha256=sha256)
    found = evaluate(some(0.1, 1), {"north": some(0.0, 2)}, some(0.0, 3), None, settings, 0, tasks=())
    assert found["inception_fid"]["n"] == 40
    wrong = EvaluationSettings(inception=str(file), inception_sha256="0" * 64)
    with pytest.raises(SettingsError, match="not run"):
        evaluate(some(0.1, 1), {"north": some(0.0, 2)}, some(0.0, 3), None, wrong, 0, tasks=())
