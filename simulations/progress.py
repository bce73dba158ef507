"""What a person sees while a study runs: one line from the run folder's progress file, whatever the backend."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

EVERY_SECONDS = 0.5


@contextmanager
def shown(run: Path) -> Iterator[None]:
    """Show the progress of the run in `run` on standard error until the block ends."""
    console = Console(stderr=True)
    stop = threading.Event()
    columns = (
        SpinnerColumn(),
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[words]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=not console.is_terminal) as progress:
        watcher = threading.Thread(
            target=_watch, args=(run / "progress.json", progress, stop, time.time()), daemon=True
        )
        watcher.start()
        try:
            yield
        finally:
            stop.set()
            watcher.join(timeout=5)


def _watch(path: Path, progress: Progress, stop: threading.Event, since: float) -> None:
    tasks: dict[str, Any] = {}
    while not stop.wait(EVERY_SECONDS):
        try:
            state = json.loads(path.read_text()) if path.stat().st_mtime >= since - 1 else {}
        except (OSError, ValueError):
            continue
        if not state:
            continue
        stage = str(state["stage"])
        for name, task in tasks.items():
            if name != stage:
                known = progress.tasks[task]
                progress.update(task, total=known.total or 1, completed=known.total or 1)
        if stage not in tasks:
            tasks[stage] = progress.add_task(stage, total=None, words="")
        total = int(state.get("rounds") or 0)
        progress.update(tasks[stage], total=total or None, completed=int(state.get("round") or 0), words=words(state))


def words(state: dict[str, Any]) -> str:
    """Rounds, sites, loss and epsilon in one line."""
    parts = []
    if state.get("sites"):
        parts.append(f"round {state['round']}/{state['rounds']}")
        parts.append(f"{state.get('usable', 0)}/{len(state['sites'])} sites")
    elif state.get("rounds"):
        parts.append(f"{state['round']}/{state['rounds']}")
    if state.get("loss") is not None:
        parts.append(f"loss {state['loss']:.4f}")
    if state.get("epsilon") is not None:
        parts.append(f"ε {state['epsilon']:.2f}")
    return " · ".join(parts)
