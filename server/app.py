"""The ServerApp: compose the study, run its stages, leave a run folder whatever happens."""

import logging
import shlex
from functools import partial
from pathlib import Path

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedmedgen.composition import compose
from fedmedgen.deployment.bound import end_with_parent
from server.joining import known_nodes
from server.run_store import RunStore
from server.stages import run_study

logger = logging.getLogger(__name__)
app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the study that `overrides` in the run config composes in the folder `out`, or go on with the one there."""
    store = open_store(context.run_config)
    if not store.settings.simulated:
        end_with_parent()
    torch.set_num_threads(store.settings.runtime.server_threads)
    members = str(context.run_config.get("members", ""))
    run_study(grid, store, partial(known_nodes, Path(members)) if members else None)


def open_store(run_config: dict[str, bool | float | int | str]) -> RunStore:
    """The run folder that a run config names: a new one, or with `resume` the one that stands there."""
    out = str(run_config.get("out", ""))
    words = shlex.split(str(run_config.get("overrides", "")))
    backend = next((word.removeprefix("backend=") for word in words if word.startswith("backend=")), "flower")
    if run_config.get("resume"):
        return RunStore.reopen(Path(out), backend=backend)
    words.append(f"backend={backend}")
    if out:
        words.append(f'out="{out}"')
    return RunStore.create(compose(words))
