"""One clipped gradient per patient: the interface of an engine, and the reference that takes one patient at a time."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from fedmedgen.errors import PrivacyError

Rows = Mapping[str, Tensor]  # tensors of equal first dimension: one patient's draws
LossPerRow = Callable[[nn.Module, dict[str, Tensor]], Tensor]  # -> [rows]; all randomness is in the rows

PRECISIONS = ("fp32", "bf16")
ENGINES = ("reference", "opacus", "fused")
PIECE = 2**8  # numbers whose squares are added in single precision: within 1e-5 in any order
SMALLEST_SINGLE = 1e-9  # a norm from which on squares that single precision loses don't matter


class Engine(Protocol):
    """Something that sums clipped per-patient gradients."""

    def clipped_sum(self, patients: Sequence[Rows], clip_norm: float) -> list[Tensor]:
        """The sum over patients of the gradient of the mean loss over each one's rows, clipped to `clip_norm`.

        **Shapes** One float64 tensor per trainable parameter, in the order of `model.parameters()`.
        **Guarantee** Adding or removing a patient changes the sum by at most `clip_norm` * (1 + 1e-5) in l2 norm,
        however many the others are: her rows move nobody else's part by more than 1e-8 of it. That takes a loss which
        is each row's own, and layers that round a row alike at every place of a batch: the self-check refuses a
        network on which it fails. A patient whose gradient isn't finite, or who has no rows, contributes zero; no
        patients give zeros.
        """
        ...


class ReferenceEngine:
    """One patient at a time, her rows as the batch: always right, and as fast as any from 8 rows on."""

    def __init__(self, model: nn.Module, loss: LossPerRow, *, precision: str = "fp32") -> None:
        refuse_batch_statistics(model)
        self._model, self._loss, self._precision = model, loss, known_precision(precision)

    def clipped_sum(self, patients: Sequence[Rows], clip_norm: float) -> list[Tensor]:
        parameters = trainable(self._model)
        total = zeros_like_parameters(parameters)
        with training_mode(self._model):
            for rows in patients:
                if num_rows(rows) == 0:
                    continue
                mean = row_losses(self._model, self._loss, rows, self._precision).mean()
                add_clipped(total, _gradient(mean, parameters), clip_norm)
        return total


def make_engine(name: str, model: nn.Module, loss: LossPerRow, *, precision: str = "fp32") -> Engine:
    """The engine called `name`, of `ENGINES`, with gradients computed in `precision`, "fp32" or "bf16".

    In bf16 the weights stay float32 and torch chooses, layer by layer, what runs in bfloat16.
    """
    if name == "reference":
        return ReferenceEngine(model, loss, precision=precision)
    if name == "opacus":
        from fedmedgen.privacy.opacus_engine import OpacusEngine

        return OpacusEngine(model, loss, precision=precision)
    if name == "fused":
        from fedmedgen.privacy.fused_engine import FusedEngine

        return FusedEngine(model, loss, precision=precision)
    raise PrivacyError(f"the engine must be 'reference', 'opacus' or 'fused'; got {name!r}")


def add_clipped(total: Sequence[Tensor], gradient: Sequence[Tensor], clip_norm: float) -> None:
    """Clip one patient's gradient, of any floating type, and add it to the float64 `total` in place.

    **Guarantee** The norm is taken, in double precision, from the very tensors that are summed; a gradient with a value
    that isn't finite is left out of the sum.
    """
    _check_clip(clip_norm)
    norm = float(torch.stack([torch.linalg.vector_norm(own, dtype=torch.float64) for own in gradient]).norm())
    if not math.isfinite(norm):
        return
    for part, own in zip(total, gradient, strict=True):
        part.add_(own.detach().to(part), alpha=clip_norm / max(norm, clip_norm))


def add_clipped_batch(total: Sequence[Tensor], sums: Sequence[Tensor], clip_norm: float, rows: int) -> None:
    """`add_clipped` for each of several patients, from flat sums of her `rows` gradients ``[patients, n]``.

    **Guarantee** As that of `add_clipped`, but for the norm, which is squared in single precision over `PIECE` numbers
    at a time and in double precision from there on: at most 1e-5 of it off. A patient's that single precision can't
    hold is taken in double precision alone.
    """
    _check_clip(clip_norm)
    norms = _norms(sums, torch.float32)
    held = (norms > SMALLEST_SINGLE) & torch.isfinite(norms)
    if not bool(held.all()):
        norms = torch.where(held, norms, _norms(sums, torch.float64))  # of the others as they would be without her
    counted = torch.isfinite(norms)
    scales = clip_norm / norms[counted].clamp(min=clip_norm * rows)
    everyone = bool(counted.all())
    for part, block in zip(total, sums, strict=True):  # each block stays in the cache
        own = (block if everyone else block[counted]).to(at_least(torch.float32, block))
        part.addmv_(own.to(torch.float64).T, scales)


def _norms(sums: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Of each patient ``[patients]``, in double precision: squares of `PIECE` numbers are added in `dtype`."""
    found: list[Tensor] = []
    for block in sums:
        whole = block.shape[1] // PIECE * PIECE
        for part in (torch.unflatten(block[:, :whole], 1, (-1, PIECE)), block[:, None, whole:]):
            if part.numel():
                found.append(torch.linalg.vector_norm(part, dim=2, dtype=at_least(dtype, part)).double().norm(dim=1))
    norms: Tensor = torch.linalg.vector_norm(torch.stack(found), dim=0)
    return norms


def at_least(dtype: torch.dtype, x: Tensor) -> torch.dtype:
    """The tensor's own type, or `dtype` if that holds more."""
    return torch.promote_types(dtype, x.dtype)


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that train, in the order of every gradient list."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise PrivacyError("the model has no trainable parameter: set requires_grad on those to train")
    return parameters


def zeros_like_parameters(parameters: Sequence[Tensor]) -> list[Tensor]:
    """In double precision: rounding a sum of float32 values would depend, a little, on every patient in it."""
    return [torch.zeros_like(p, dtype=torch.float64, memory_format=torch.contiguous_format) for p in parameters]


def num_rows(rows: Rows) -> int:
    """The rows a patient has.

    **Raises** `PrivacyError` if her tensors differ in length.
    """
    lengths = {tensor.shape[0] for tensor in rows.values()}
    if len(lengths) != 1:
        raise PrivacyError(f"a patient's tensors must have equal first dimensions; got {sorted(lengths)}")
    return lengths.pop()


def row_losses(model: nn.Module, loss: LossPerRow, rows: Rows, precision: str = "fp32") -> Tensor:
    """The loss of each row, computed in `precision`.

    **Raises** `PrivacyError` if the loss isn't one number a row.
    """
    device = next(iter(rows.values())).device.type
    with torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16"):
        losses = loss(model, dict(rows))
    if losses.shape != (num_rows(rows),):
        raise PrivacyError(f"a loss must give one value a row, [{num_rows(rows)}]; got shape {list(losses.shape)}")
    return losses


def known_precision(precision: str) -> str:
    """The precision itself.

    **Raises** `PrivacyError` if there is none of that name.
    """
    if precision not in PRECISIONS:
        raise PrivacyError(f"the precision must be 'fp32' or 'bf16'; got {precision!r}")
    return precision


def refuse_batch_statistics(model: nn.Module) -> None:
    """**Raises** `PrivacyError` for layers that mix patients or keep statistics of them, unclipped."""
    names = [name for name, module in model.named_modules() if isinstance(module, _NormBase) and _mixes(module)]
    if names:
        raise PrivacyError(f"layers {names} mix patients or keep their statistics unclipped: use GroupNorm instead")


@contextlib.contextmanager
def training_mode(model: nn.Module) -> Iterator[None]:
    """Training mode inside, each module's own mode after."""
    modes = [(module, module.training) for module in model.modules()]
    model.train()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _check_clip(clip_norm: float) -> None:
    if not (math.isfinite(clip_norm) and clip_norm > 0):
        raise PrivacyError(f"the clip norm must be a finite number above 0; got {clip_norm!r}")


def _gradient(mean: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    found = torch.autograd.grad(mean, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def _mixes(module: _NormBase) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm) or module.track_running_stats
