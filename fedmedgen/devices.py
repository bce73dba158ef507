"""Where networks run: a GPU or the processor, and how a GPU must reckon."""

import logging
import os

import torch

from fedmedgen.settings import Settings

logger = logging.getLogger(__name__)


def device_of(settings: Settings) -> torch.device:
    """The GPU where torch finds one and the settings allow it, else the CPU; "cuda" is taken at its word.

    **Guarantee** On a GPU single precision is single precision (torch would round convolutions to TF32), and torch
    takes kernels that repeat themselves wherever it has one: the noise covers what one patient moves, not what order
    of adding moves.
    """
    wanted = settings.runtime.device
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda":
        _reckon_exactly()
    return torch.device(wanted)


def drawing_device(settings: Settings) -> torch.device:
    """As `device_of`, but for a run that may have been made elsewhere: without a GPU, the CPU."""
    if settings.runtime.device == "cuda" and not torch.cuda.is_available():
        logger.warning("the run was made with runtime.device=cuda; here is no GPU that torch can use: the CPU serves")
        return torch.device("cpu")
    return device_of(settings)


def _reckon_exactly() -> None:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    for attention in ("flash", "mem_efficient", "cudnn"):  # backward they add in any order; plain products are left
        getattr(torch.backends.cuda, f"enable_{attention}_sdp")(False)
