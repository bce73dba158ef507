"""Processor time of several things in turn, so that what else the machine does falls on all alike; and its peak."""

import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from statistics import median
from typing import Any

import torch

from fedmedgen import devices
from fedmedgen.settings import Settings
from simulations.ledger_campaign import commit

Times = dict[str, list[float]]


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread inside, on as many as before afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def device() -> torch.device:
    """What is measured: the GPU where there is one."""
    return devices.device_of(Settings())


def in_turn(runs: Mapping[str, Callable[[], object]], repeats: int) -> Times:
    """Seconds of each run in each of `repeats` turns; run what should be warm before.

    Processor seconds of this process on a CPU; wall seconds on a GPU, which is waited for.
    """
    times: Times = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = _now()
            run()
            times[name].append(_now() - start)
    return times


def ratio(times: Times, one: str, other: str) -> dict[str, float]:
    """Seconds of `one` over those of `other`, turn by turn: median, least and largest."""
    each = [a / b for a, b in zip(times[one], times[other], strict=True)]
    return {"median": median(each), "least": min(each), "largest": max(each)}


def peak_gflops(dtype: torch.dtype) -> float:
    """The most that a convolution of friendly shape reaches here, in one process."""
    x = torch.randn(16, 128, 16, 16, device=device()).to(dtype, memory_format=torch.channels_last)
    weight = torch.randn(128, 128, 3, 3, device=device()).to(dtype, memory_format=torch.channels_last)
    times = in_turn({"peak": lambda: [torch.conv2d(x, weight, padding=1) for _ in range(8)]}, 8)["peak"]
    return 8 * 2 * 16 * 256 * 128 * 128 * 9 / min(times) / 1e9


def machine() -> dict[str, Any]:
    """What was measured on, and when."""
    return {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": commit(),
    }


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def _processor() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    with open("/proc/cpuinfo") as file:  # noqa: PTH123
        names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    return names[0] if names else platform.processor()
