"""The faster kernel for each shape of a convolution on this machine, measured once and kept in a file."""

import fcntl
import json
import logging
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.benchmark import Timer

from fedmedgen.privacy.contractions import KERNELS, ONE_BY_ONE, Choose, Window, by_rule

logger = logging.getLogger(__name__)

SECONDS = 0.05  # of each kernel on each shape
LARGEST_UNFOLDED = 2**28  # bytes; what is more isn't unfolded to be measured

_chosen: Choose = by_rule


def keep_in(file: str) -> None:
    """From now on, as torch's number of threads, in this process: kernels measured and kept in `file`; "": the rule."""
    global _chosen
    _chosen = measured_in(Path(file).resolve()) if file else by_rule


def current() -> Choose:
    """What engines made now choose kernels by."""
    return _chosen


def mark() -> str:
    """What tells these kernels from any others; empty by the rule alone."""
    return _chosen.mark if isinstance(_chosen, Measured) else ""


@contextmanager
def measuring() -> Iterator[None]:
    """Where shapes that are met for the first time may be measured: in a check, never while patients are read."""
    if isinstance(_chosen, Measured):
        with _chosen.measuring():
            yield
    else:
        yield


@cache
def measured_in(path: Path) -> "Measured":
    """One for each file in a process: engines that share it take the same kernels."""
    return Measured(path)


class Measured:
    """The kernel that was the faster when its shape was met in `measuring()`; by the rule for any other shape.

    **Guarantee** Outside `measuring()` nothing is timed, read or changed: what one patient brings decides nothing for
    another, and takes no longer the first time. While the file is kept, the same seed gives the same bits. It holds
    shapes and the kind of processor, and is nothing that leaves a site.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path, self._known = path, _read(path) if path else {}
        self._found: dict[str, str] | None = None  # of this measuring

    @property
    def mark(self) -> str:
        """The hash of all that is chosen otherwise than by the rule alone."""
        return sha256(json.dumps(self._known, sort_keys=True).encode()).hexdigest()

    @contextmanager
    def measuring(self) -> Iterator[None]:
        self._found = {}
        try:
            yield
        finally:
            found, self._found = self._found, None
            self._known = {**found, **self._known}
            if found and self.path:
                self._known = _kept(self.path, self._known)

    def __call__(self, x: Tensor, dy: Tensor, weight: Tensor, patients: int, how: Window) -> str:
        key = _key(x, dy, weight, patients, how)
        if key in self._known:
            return self._known[key]
        if self._found is None:
            return by_rule(x, dy, weight, patients, how)
        if key not in self._found:
            self._found[key] = _fastest(x, dy, weight, patients, how)
        return self._found[key]


def _read(path: Path) -> dict[str, str]:
    try:
        found = json.loads(path.read_text())
        return {key: kernel for key, kernel in found.items() if kernel in KERNELS}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        logger.warning("kernels are measured anew: %s can't be read: %s", path, error)
        return {}


def _kept(path: Path, known: Mapping[str, str]) -> dict[str, str]:
    """These beside what other processes have kept meanwhile, whose word stands; in the file if it can be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_name(path.name + ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            whole = {**known, **_read(path)}
            draft = path.with_name(f"{path.name}.draft")
            draft.write_text(json.dumps(whole, indent=1, sort_keys=True) + "\n")
            draft.replace(path)
            return whole
    except OSError as error:
        logger.warning("kernels measured here last as long as this process: they can't be kept in %s: %s", path, error)
        return dict(known)


def _key(x: Tensor, dy: Tensor, weight: Tensor, patients: int, how: Window) -> str:
    if x.device.type == "cpu":
        where = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()} {torch.get_num_threads()} threads"
    else:
        where = torch.get_device_module(x.device).get_device_name(x.device)
    shapes = (str(x.dtype), patients, *(tuple(one.shape) for one in (x, dy, weight)), how)
    return f"torch {torch.__version__}, {where}: " + " ".join(str(one).replace(" ", "") for one in shapes)


def _fastest(x: Tensor, dy: Tensor, weight: Tensor, patients: int, how: Window) -> str:
    unfolded = dy.numel() // dy.shape[1] * weight[0].numel() * x.element_size()
    if unfolded > LARGEST_UNFOLDED:
        return ONE_BY_ONE
    generator = torch.Generator().manual_seed(0)
    x, dy, weight = (
        torch.empty_like(one).copy_(torch.randn(one.shape, generator=generator)) for one in (x, dy, weight)
    )
    seconds = {name: _seconds(partial(kernel, x, dy, weight, patients, how)) for name, kernel in KERNELS.items()}
    return min(seconds, key=seconds.__getitem__)


def _seconds(run: "partial[Tensor]") -> float:
    timer = Timer("run()", globals={"run": run}, num_threads=torch.get_num_threads())
    return float(timer.blocked_autorange(min_run_time=SECONDS).median)
