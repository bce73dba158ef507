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


class Engine(Protocol):
    """Something that sums clipped per-patient gradients."""

    def clipped_sum(self, patients: Sequence[Rows], clip_norm: float) -> list[Tensor]:
        """The sum over patients of the gradient of the mean loss over each one's rows, clipped to `clip_norm`.

        **Shapes** One float32 tensor per trainable parameter, in the order of `model.parameters()`.
        **Guarantee** Adding or removing a patient changes the sum by at most `clip_norm` * (1 + 1e-5) in l2 norm; a
        patient whose gradient isn't finite, or who has no rows, contributes zero; no patients give zeros.
        """
        ...


class ReferenceEngine:
    """One patient at a time, her rows as the batch: always right, and as fast as any from 8 rows on."""

    def __init__(self, model: nn.Module, loss: LossPerRow) -> None:
        refuse_batch_statistics(model)
        self._model, self._loss = model, loss

    def clipped_sum(self, patients: Sequence[Rows], clip_norm: float) -> list[Tensor]:
        parameters = trainable(self._model)
        total = zeros_like_parameters(parameters)
        with training_mode(self._model):
            for rows in patients:
                if num_rows(rows) == 0:
                    continue
                mean = row_losses(self._model, self._loss, rows).mean()
                add_clipped(total, [g.unsqueeze(0) for g in _gradient(mean, parameters)], clip_norm)
        return total


def make_engine(name: str, model: nn.Module, loss: LossPerRow) -> Engine:
    """The engine called `name`: "reference" or "opacus"."""
    if name == "reference":
        return ReferenceEngine(model, loss)
    if name == "opacus":
        from fedmedgen.privacy.opacus_engine import OpacusEngine

        return OpacusEngine(model, loss)
    raise PrivacyError(f"the engine must be 'reference' or 'opacus'; got {name!r}")


def add_clipped(total: list[Tensor], gradients: Sequence[Tensor], clip_norm: float) -> None:
    """Clip the gradients of several patients and add them to `total` in place.

    **Shapes** `gradients`: one `[patients, *parameter]` per parameter.
    **Guarantee** Norms are taken, in double precision, from the very float32 tensors that are summed; a patient with a
    value that isn't finite is left out of the sum.
    """
    if not (math.isfinite(clip_norm) and clip_norm > 0):
        raise PrivacyError(f"the clip norm must be a finite number above 0; got {clip_norm!r}")
    flat = [gradient.detach().to(torch.float32).flatten(1) for gradient in gradients]
    norms = torch.stack([torch.linalg.vector_norm(g, dim=1, dtype=torch.float64) for g in flat]).norm(dim=0)
    kept = torch.isfinite(norms).nonzero().flatten()
    if kept.numel() == 0:
        return
    weights = (clip_norm / norms[kept].clamp(min=clip_norm)).to(torch.float32)
    for part, gradient in zip(total, flat, strict=True):
        finite = gradient if kept.numel() == norms.numel() else gradient[kept]
        part += (weights @ finite).reshape(part.shape)


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that train, in the order of every gradient list."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise PrivacyError("the model has no trainable parameter: set requires_grad on those to train")
    return parameters


def zeros_like_parameters(parameters: Sequence[Tensor]) -> list[Tensor]:
    return [torch.zeros_like(p, dtype=torch.float32, memory_format=torch.contiguous_format) for p in parameters]


def num_rows(rows: Rows) -> int:
    """The rows a patient has.

    **Raises** `PrivacyError` if her tensors differ in length.
    """
    lengths = {tensor.shape[0] for tensor in rows.values()}
    if len(lengths) != 1:
        raise PrivacyError(f"a patient's tensors must have equal first dimensions; got {sorted(lengths)}")
    return lengths.pop()


def row_losses(model: nn.Module, loss: LossPerRow, rows: Rows) -> Tensor:
    """The loss of each row.

    **Raises** `PrivacyError` if the loss isn't one number a row.
    """
    losses = loss(model, dict(rows))
    if losses.shape != (num_rows(rows),):
        raise PrivacyError(f"a loss must give one value a row, [{num_rows(rows)}]; got shape {list(losses.shape)}")
    return losses


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


def _gradient(mean: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    found = torch.autograd.grad(mean, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def _mixes(module: _NormBase) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm) or module.track_running_stats
