"""The faster kernel for each shape of a convolution on this machine, measured once and kept in a file."""

import json
import logging
import platform
from contextlib import suppress
from functools import cache, partial
from hashlib import sha256
from pathlib import Path
from uuid import uuid4

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
    """What tells these kernels from any others: the hash of their file; empty by the rule, or before there is one."""
    path = _chosen.path if isinstance(_chosen, Measured) else None
    return sha256(path.read_bytes()).hexdigest() if path and path.is_file() else ""


@cache
def measured_in(path: Path) -> "Measured":
    """One for each file in a process: engines that share it take the same kernels."""
    return Measured(path)


class Measured:
    """Times both kernels on random numbers of a shape when it is first seen, and keeps the faster one's name.

    While the file is kept, the same seed gives the same bits. It holds shapes and this machine's name for itself, and
    is nothing that leaves a site. Without a file that can be written, what was measured lasts as long as this object.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path, self._known = path, _read(path) if path else {}

    def __call__(self, x: Tensor, dy: Tensor, weight: Tensor, patients: int, how: Window) -> str:
        key = _key(x, dy, weight, patients, how)
        if key not in self._known:
            self._known[key] = _fastest(x, dy, weight, patients, how)
            if self.path:
                self._keep(self.path)
        return self._known[key]

    def _keep(self, path: Path) -> None:
        """What another process has found meanwhile stays."""
        self._known |= _read(path)
        beside = path.with_name(f"{path.name}.{uuid4().hex}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            beside.write_text(json.dumps(self._known, indent=1, sort_keys=True) + "\n")
            beside.replace(path)
        except OSError as error:
            with suppress(OSError):
                beside.unlink()
            logger.warning("kernels measured here can't be kept in %s: %s", path, error)


def _read(path: Path) -> dict[str, str]:
    try:
        found = json.loads(path.read_text())
        return {key: kernel for key, kernel in found.items() if kernel in KERNELS}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        logger.warning("kernels are measured anew: %s can't be read: %s", path, error)
        return {}


def _key(x: Tensor, dy: Tensor, weight: Tensor, patients: int, how: Window) -> str:
    if x.device.type == "cpu":
        where = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()} {torch.get_num_threads()} threads"
    else:
        where = torch.cuda.get_device_name(x.device)
    shapes = (str(x.dtype), patients, *(tuple(one.shape) for one in (x, dy, weight)), how)
    return f"torch {torch.__version__}, {where}: " + " ".join(str(one).replace(" ", "") for one in shapes)


def _fastest(x: Tensor, dy: Tensor, weight: Tensor, patients: int, how: Window) -> str:
    unfolded = dy.numel() // dy.shape[1] * weight[0].numel() * x.element_size()
    if unfolded > LARGEST_UNFOLDED:
        return ONE_BY_ONE
    generator = torch.Generator(x.device).manual_seed(0)
    x, dy, weight = (torch.empty_like(one).normal_(generator=generator) for one in (x, dy, weight))
    seconds = {name: _seconds(partial(kernel, x, dy, weight, patients, how)) for name, kernel in KERNELS.items()}
    return min(seconds, key=seconds.__getitem__)


def _seconds(run: "partial[Tensor]") -> float:
    timer = Timer("run()", globals={"run": run}, num_threads=torch.get_num_threads())
    return float(timer.blocked_autorange(min_run_time=SECONDS).median)
