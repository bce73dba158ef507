"""Fixtures shared by all tests."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from flwr.supercore.task_identity import TaskIdentity

torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Workers share the cores: a study that sets more threads for its server would slow all that a worker runs next."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "set_num_threads", lambda _: None)
        yield


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real radiographs; the test skips where it isn't there."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    root = Path(os.environ.get("FEDMEDGEN_DATA", default))
    if not (root / "README.md").is_file():
        pytest.skip(f"no real radiographs at {root}: set FEDMEDGEN_DATA to run this test")
    return root


@pytest.fixture
def identity() -> Iterator[None]:
    """Flower makes a Message only for a task that has an identity."""
    before = (TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id)
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    yield
    TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id = before
