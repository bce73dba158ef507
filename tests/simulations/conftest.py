"""Smoke runs that several tests look at."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from simulations.run import simulate

QUICK = ("study=demo", "smoke=true", "evaluation.enabled=false", "emission.count=6", "data.max_patients=12")


@pytest.fixture(scope="session")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Run a quick study in a fresh folder."""

    def run(words: Sequence[str] = (), backend: str = "in-process") -> Path:
        out = tmp_path_factory.mktemp("run") / "run"
        return simulate([*QUICK, *words], backend=backend, out=str(out))

    return run


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whole smoke run of the demo, evaluation included."""
    out = tmp_path_factory.mktemp("finished") / "run"
    return simulate(["study=demo", "smoke=true"], out=str(out))
