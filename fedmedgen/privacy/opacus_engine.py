"""All patients' rows at once through Opacus' hooks, with their fault on strided convolution inputs mended."""

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from opacus.grad_sample import GradSampleHooks
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from fedmedgen.errors import PrivacyError
from fedmedgen.privacy.per_patient import (
    LossPerRow,
    Rows,
    add_clipped,
    num_rows,
    refuse_batch_statistics,
    row_losses,
    trainable,
    training_mode,
    zeros_like_parameters,
)


class OpacusEngine:
    """Row gradients by Opacus' hooks, averaged by patient and clipped by the same code as the reference.

    Rows of whole patients are taken together up to `max_rows`: memory grows with that many copies of the parameters.
    """

    def __init__(self, model: nn.Module, loss: LossPerRow, max_rows: int = 64) -> None:
        refuse_batch_statistics(model)
        self._model, self._loss, self._max_rows = model, loss, max_rows

    def clipped_sum(self, patients: Sequence[Rows], clip_norm: float) -> list[Tensor]:
        total = zeros_like_parameters(trainable(self._model))
        present = [rows for rows in patients if num_rows(rows) > 0]
        if not present:
            return total
        with training_mode(self._model), _hooked(self._model):
            for chunk in _chunks(present, self._max_rows):
                add_clipped(total, self._by_patient(chunk), clip_norm)
        return total

    def _by_patient(self, chunk: Sequence[Rows]) -> list[Tensor]:
        """Each patient's gradient of her mean loss: `[patients, *parameter]` per parameter."""
        counts = torch.tensor([num_rows(rows) for rows in chunk])
        joined = {key: torch.cat([rows[key] for rows in chunk]) for key in chunk[0]}
        device = next(iter(joined.values())).device
        patient = torch.repeat_interleave(torch.arange(len(chunk)), counts).to(device)
        total = row_losses(self._model, self._loss, joined).sum()
        with warnings.catch_warnings():
            # Right for layers at the door of the network: rows need no gradient themselves.
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            torch.autograd.backward(total)
        out = []
        for name, parameter in self._model.named_parameters():
            if parameter.requires_grad:
                per_row = _take_row_gradients(name, parameter, rows=len(patient))
                mean = torch.zeros(len(chunk), *parameter.shape, device=device)
                mean.index_add_(0, patient, per_row)  # adds rows, so a value that isn't finite stays with its patient
                out.append(mean / counts.to(device).reshape(-1, *[1] * parameter.dim()))
        return out


@contextlib.contextmanager
def mended_convolutions(model: nn.Module) -> Iterator[None]:
    """Hand each convolution contiguous inputs.

    Opacus unfolds activations as if they were contiguous; on the strided ones that attention hands on it yields wrong
    row gradients, silently.
    """
    handles = [m.register_forward_pre_hook(_contiguous) for m in model.modules() if isinstance(m, _ConvNd)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _hooked(model: nn.Module) -> Iterator[None]:
    """Opacus' hooks inside; the caller's model as it was, its gradients too, after."""
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    for parameter, _ in gradients:
        parameter.grad = None
    hooks = None
    try:
        with mended_convolutions(model):
            hooks = GradSampleHooks(model, loss_reduction="sum", strict=False)
            yield
    finally:
        if hooks is not None:
            hooks.cleanup()
        for module in model.modules():
            for name in ("activations", "max_batch_len"):
                module.__dict__.pop(name, None)
        for parameter, gradient in gradients:
            parameter.grad = gradient


def _contiguous(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(x.contiguous() if isinstance(x, Tensor) else x for x in inputs)


def _chunks(patients: Sequence[Rows], max_rows: int) -> Iterator[list[Rows]]:
    chunk: list[Rows] = []
    rows = 0
    for patient in patients:
        if chunk and rows + num_rows(patient) > max_rows:
            yield chunk
            chunk, rows = [], 0
        chunk.append(patient)
        rows += num_rows(patient)
    yield chunk


def _take_row_gradients(name: str, parameter: nn.Parameter, *, rows: int) -> Tensor:
    """The parameter's row gradients, freed from the parameter.

    **Raises** `PrivacyError` if the hooks missed a use of the parameter.
    """
    found: Tensor | list[Tensor] | None = parameter.grad_sample  # type: ignore[attr-defined]
    used = parameter.grad is not None
    parameter.grad = None
    parameter.grad_sample = None  # type: ignore[attr-defined]
    if found is None and not used:
        return torch.zeros(rows, *parameter.shape, device=parameter.device)
    if not isinstance(found, Tensor) or found.shape[0] != rows:
        raise PrivacyError(f"Opacus' hooks gave no gradient per row for {name}: use privacy.engine=reference")
    return found.detach().to(torch.float32)
