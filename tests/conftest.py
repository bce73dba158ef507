"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real radiographs; the test skips where it isn't there."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    root = Path(os.environ.get("FEDMEDGEN_DATA", default))
    if not (root / "README.md").is_file():
        pytest.skip(f"no real radiographs at {root}: set FEDMEDGEN_DATA to run this test")
    return root
