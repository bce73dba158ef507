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
    known_precision,
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
    Every batch is filled up to exactly `max_rows` rows, since kernels round differently by the size of a batch: a
    patient who comes would move the rounding of all who share hers. One with more rows is a batch alone. Where the
    place in a batch matters too, as in layers whose width isn't a multiple of four and, by processor, on images of odd
    sizes, the self-check refuses the model.
    """

    def __init__(self, model: nn.Module, loss: LossPerRow, max_rows: int = 64, *, precision: str = "fp32") -> None:
        refuse_batch_statistics(model)
        self._model, self._loss, self._max_rows = model, loss, max_rows
        self._precision = known_precision(precision)

    def clipped_sum(self, patients: Sequence[Rows], clip_norm: float) -> list[Tensor]:
        total = zeros_like_parameters(trainable(self._model))
        present = [rows for rows in patients if num_rows(rows) > 0]
        if not present:
            return total
        with training_mode(self._model), _hooked(self._model):
            for chunk in _chunks(present, self._max_rows):
                per_row = self._row_gradients(_joined(chunk, self._max_rows))
                start = 0
                for rows in chunk:
                    end = start + num_rows(rows)
                    add_clipped(
                        total, [part[start:end].mean(dim=0, dtype=torch.float64) for part in per_row], clip_norm
                    )
                    start = end
        return total

    def _row_gradients(self, rows: Rows) -> list[Tensor]:
        """The gradient of each row's loss: `[rows, *parameter]` per parameter."""
        total = row_losses(self._model, self._loss, rows, self._precision).sum()
        with warnings.catch_warnings():
            # Right for layers at the door of the network: rows need no gradient themselves.
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            torch.autograd.backward(total)
        return [
            _take_row_gradients(name, parameter, rows=num_rows(rows))
            for name, parameter in self._model.named_parameters()
            if parameter.requires_grad
        ]


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


def _joined(patients: Sequence[Rows], max_rows: int) -> dict[str, Tensor]:
    """All rows in turn, and copies of the last up to `max_rows`."""
    joined = {key: torch.cat([rows[key] for rows in patients]) for key in patients[0]}
    filling = max(0, max_rows - num_rows(joined))
    return {key: torch.cat([value, value[-1:].expand(filling, *value.shape[1:])]) for key, value in joined.items()}


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
    return found.detach()
