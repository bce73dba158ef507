"""Run a study, or go on with one, on either backend."""

import json
import logging
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedmedgen.composition import compose
from fedmedgen.data.partition import held
from fedmedgen.errors import RunError, SettingsError
from fedmedgen.settings import Settings
from server.run_store import RunStore, write_text
from simulations.flower_run import run_flower
from simulations.in_process import run_in_process
from simulations.progress import shown

PARTITION = "partition-id"
logger = logging.getLogger(__name__)


def simulate(overrides: Sequence[str] = (), *, backend: str = "", out: str = "", resume: str = "") -> Path:
    """Run the study that the overrides compose; the run folder.

    `backend` and `out` win over the overrides. `resume` names a run folder to go on with, under its own settings.

    **Raises** `FedmedgenError` with the reason where the study did not complete.
    """
    if resume:
        if overrides:
            raise SettingsError(f"--resume takes the run's own settings; leave out {' '.join(overrides)!r}")
        if out:
            raise SettingsError(f"--resume goes on in the run's own folder; leave out --out {out}")
        settings = RunStore.reopen(Path(resume).resolve(), backend=backend).settings
        run_config = {"overrides": f"backend={settings.backend}", "out": settings.out, "resume": True}
    else:
        words = [*overrides, *([f"backend={backend}"] if backend else []), *([f'out="{out}"'] if out else [])]
        settings = compose(words)
        roots = ",".join(f'"{root}"' for root in settings.prior.roots)
        paths = [
            f"backend={settings.backend}",
            f'out="{settings.out}"',
            f'data.root="{settings.data.root}"',
            f'ledger.root="{settings.ledger.root}"',
            f'runtime.kernel_cache="{settings.runtime.kernel_cache}"',
            f"prior.roots=[{roots}]",
        ]
        run_config = {"overrides": shlex.join([*words, *paths]), "out": settings.out, "resume": False}
    if not settings.simulated:
        raise SettingsError(
            "backend=deployment is for studies submitted to a server; simulate takes in-process or flower"
        )
    _run(settings, run_config)
    return Path(settings.out)


def _run(settings: Settings, run_config: dict[str, Any]) -> None:
    out = Path(settings.out)
    with shown(out):
        if settings.backend == "in-process":
            nodes = {100 + number: {PARTITION: number} for number in range(site_count(settings))}
            run_in_process(run_config, nodes)
        else:
            federation = settings.federation
            peak = run_flower(
                run_config, nodes=site_count(settings), cpus=federation.client_cpus, gpus=federation.client_gpus
            )
            _note_peak(out, peak)


def site_count(settings: Settings) -> int:
    """How many sites the study's data are held by."""
    if settings.data.partition != "natural" or not settings.data.root:
        return settings.data.sites
    return len(held(settings.data, settings.seed).parts)


def result_of(run: Path) -> dict[str, Any]:
    """The result of a finished run."""
    path = run / "result.json"
    if not path.is_file():
        raise RunError(f"expected a finished run at {run}; there is no result.json")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def _note_peak(run: Path, peak_mb: float) -> None:
    """Flower's processes are measured from outside, all together."""
    result = result_of(run)
    result["peak_rss_mb"] = round(peak_mb)
    write_text(run / "result.json", json.dumps(result, indent=2))
