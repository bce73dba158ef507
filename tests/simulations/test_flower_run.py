"""The same study through Flower's own runtime: same weights, true exit status, no process left."""

import json
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file

from fedmedgen.errors import RunError
from simulations.run import simulate

WORDS = ["study=demo", "smoke=true", "evaluation.enabled=false", "emission.count=6", "data.max_patients=12"]


def final(run: Path) -> dict[str, np.ndarray]:
    words = json.loads((run / "checkpoint.json").read_text())
    return load_file(run / "checkpoint" / words["arrays"])


def leftovers() -> list[str]:
    """Processes of Flower runs whose private home is gone: they should have ended with it."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            home = process.environ().get("FLWR_HOME", "")
            if "fedmedgen-flwr-" in home and not Path(home).parent.exists():
                found.append(" ".join(process.cmdline())[:120])
    return found


@pytest.mark.parametrize("generator", ["unet", "latent"])
def test_a_seeded_study_gives_the_same_weights_on_both_backends(tmp_path: Path, generator: str) -> None:
    words = [*WORDS, "rounds=4", "fault.site=site-3", "fault.round=2", f"generator={generator}"]
    flower = simulate(words, backend="flower", out=str(tmp_path / "flower"))
    here = simulate(words, backend="in-process", out=str(tmp_path / "here"))
    one, other = final(flower), final(here)
    assert one.keys() == other.keys()
    assert max(float(np.max(np.abs(one[key] - other[key]))) for key in one) <= 1e-6
    result = json.loads((flower / "result.json").read_text())
    assert (result["status"], result["backend"], list(result["lost_sites"])) == ("completed", "flower", ["site-3"])
    assert result["peak_rss_mb"] > 100
    assert (flower / "report.html").is_file()
    assert leftovers() == []


def test_a_run_that_fails_inside_flower_fails_outside_with_its_reason(tmp_path: Path) -> None:
    words = [*WORDS, "federation.min_sites=3", "fault.site=site-2", "fault.round=1"]
    with pytest.raises(RunError, match=r"federation\.min_sites"):
        simulate(words, backend="flower", out=str(tmp_path / "run"))
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "failed"
    assert leftovers() == []
