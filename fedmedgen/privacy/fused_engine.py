"""All rows of several patients at once, with a gradient for each patient and none for the batch."""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import disable_saved_tensors_hooks

from fedmedgen.privacy import kernels
from fedmedgen.privacy.contractions import Choose, by_rule
from fedmedgen.privacy.fused_calls import FusedCalls, UnknownUseError, Weights
from fedmedgen.privacy.fused_layers import Sink
from fedmedgen.privacy.per_patient import (
    LossPerRow,
    ReferenceEngine,
    Rows,
    add_clipped_batch,
    known_precision,
    num_rows,
    refuse_batch_statistics,
    row_losses,
    trainable,
    training_mode,
)

logger = logging.getLogger(__name__)

LARGEST_BATCH = 2**28  # bytes of gradients: one for each patient of a batch
BLOCK = 2**14  # numbers of a patient that are squared, or added, at a time: in double precision they fit the cache
CHECKPOINT = "a checkpoint, whose second way forward no layer here would see"
SMALL = 2**11  # numbers up to which layers share a block


class FusedEngine:
    """Gradients by patient from layers of our own (`fused_layers`), in batches of up to `max_rows` rows.

    Patients with equally many rows share a batch, which is filled up with copies to one size: what is computed for a
    patient depends on how many rows she has and, by rounding alone, on her place in the batch. More rows than
    `max_rows` are taken in turn, and summed before the clip. A model with a layer, or a use of a weight, that can't be
    taken so is given to the reference engine as a whole, and the log says why: found out before the first patient,
    on batches of two sizes, for a layer whose input only happens to have as many places as there are rows.
    `choose` names the kernel of each convolution's weights; without it, what `kernels.keep_in` has set.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: LossPerRow,
        max_rows: int = 16,
        *,
        precision: str = "fp32",
        choose: Choose | None = None,
    ) -> None:
        refuse_batch_statistics(model)
        self._model, self._loss, self._precision = model, loss, known_precision(precision)
        self._choose = choose or kernels.current()
        size = 4 * sum(parameter.numel() for parameter in trainable(model))
        self._max_rows, self._max_patients = max_rows, max(1, LARGEST_BATCH // size)
        self._instead: ReferenceEngine | None = None
        self._tried: set[Any] = set()  # shapes of rows

    @property
    def instead(self) -> ReferenceEngine | None:
        """The engine that took the model, if this one couldn't."""
        return self._instead

    def clipped_sum(self, patients: Sequence[Rows], clip_norm: float) -> list[Tensor]:
        if self._instead is None:
            try:
                return self._fused_sum(patients, clip_norm)
            except UnknownUseError as unknown:
                logger.warning("the fused engine can't take %s: the reference engine takes the whole model", unknown)
                self._instead = ReferenceEngine(self._model, self._loss, precision=self._precision)
        return self._instead.clipped_sum(patients, clip_norm)

    def _fused_sum(self, patients: Sequence[Rows], clip_norm: float) -> list[Tensor]:
        parameters = trainable(self._model)
        names: dict[Tensor, str] = {p: name for name, p in self._model.named_parameters() if p.requires_grad}
        by_size = sorted(parameters, key=lambda parameter: parameter.numel())
        total = torch.zeros(sum(p.numel() for p in by_size), dtype=torch.float64, device=by_size[0].device)
        weights, filled = Weights(), [rows for rows in patients if num_rows(rows)]
        with training_mode(self._model):
            for rows in filled:
                self._try(rows, names, weights)
            for batch, present in self._batches(filled):
                sums = _blocks(self._summed(batch, names, weights), by_size, present)
                add_clipped_batch(
                    torch.split(total, [own.shape[1] for own in sums]), sums, clip_norm, num_rows(batch[0])
                )
                del sums  # before the next batch has its own
        parts = dict(zip(by_size, torch.split(total, [p.numel() for p in by_size]), strict=True))
        return [_as_parameter(parts[parameter], parameter) for parameter in parameters]

    def _batches(self, patients: Sequence[Rows]) -> Iterator[tuple[list[Rows], int]]:
        """Patients with rows alike, filled up with the last to the size that their number has; how many are real."""
        alike: dict[Any, list[Rows]] = {}
        for rows in patients:
            shapes = tuple((key, value.shape, value.dtype) for key, value in sorted(rows.items()))
            alike.setdefault(shapes, []).append(rows)
        for group in alike.values():
            rows_each = num_rows(group[0])
            size = max(1, min(self._max_rows // rows_each, self._max_patients))
            for start in range(0, len(group), size):
                batch = group[start : start + size]
                yield batch + batch[-1:] * (size - len(batch)), len(batch)

    def _try(self, rows: Rows, names: dict[Tensor, str], weights: Weights) -> None:
        """Both passes on two and on three rows of zeros of this shape, once: their numbers are no patient's.

        **Raises** `UnknownUseError` for whatever they trip over.
        """
        shape = tuple((key, value.shape[1:], value.dtype) for key, value in sorted(rows.items()))
        if shape in self._tried:
            return
        one = {key: torch.zeros_like(value[:1]) for key, value in rows.items()}
        for count in (2, 3):
            try:
                self._gradients([one] * count, names, weights, by_rule)
            except UnknownUseError:
                raise
            except Exception as error:
                raise UnknownUseError(f"a layer or the loss: {type(error).__name__}: {error}") from error
        self._tried.add(shape)

    def _summed(self, batch: Sequence[Rows], names: dict[Tensor, str], weights: Weights) -> dict[Tensor, Tensor]:
        """The patients' sums; of one who has more rows than fit, part after part."""
        count = num_rows(batch[0])
        if count <= self._max_rows:
            return self._gradients(batch, names, weights, self._choose)
        total: dict[Tensor, Tensor] = {}
        for start in range(0, count, self._max_rows):
            part = [{key: value[start : start + self._max_rows] for key, value in rows.items()} for rows in batch]
            for parameter, gradient in self._gradients(part, names, weights, self._choose).items():
                total[parameter] = total[parameter] + gradient if parameter in total else gradient
        return total

    def _gradients(
        self, batch: Sequence[Rows], names: dict[Tensor, str], weights: Weights, choose: Choose
    ) -> dict[Tensor, Tensor]:
        sink = Sink(len(batch), num_rows(batch[0]), choose)
        joined = {key: torch.cat([rows[key] for rows in batch]) for key in batch[0]}
        with FusedCalls(sink, names, weights) as calls, disable_saved_tensors_hooks(CHECKPOINT):
            total = row_losses(self._model, self._loss, joined, self._precision).sum()
            calls.check_lent()
        unseen: Sequence[Tensor | None] = ()
        if total.requires_grad:
            sink.is_open = True
            unseen = torch.autograd.grad(total, list(names), allow_unused=True)
        for name, gradient in zip(names.values(), unseen, strict=False):
            if gradient is not None:
                raise UnknownUseError(f"{name}: a use outside convolution, linear, norm and embedding layers")
        return sink.found


def _blocks(found: dict[Tensor, Tensor], by_size: Sequence[Tensor], patients: int) -> list[Tensor]:
    """The patients' gradients side by side in the order of `by_size`: small ones together, large ones in pieces."""
    small, large = [torch.empty(patients, 0, device=by_size[0].device)], []
    for parameter in by_size:
        gradient = found.get(parameter)
        if gradient is None:
            small.append(torch.zeros(patients, parameter.numel(), device=parameter.device))
            continue
        gradient = gradient.movedim(2, -1) if gradient.dim() == 5 else gradient  # as it lies in memory
        flat = gradient[:patients].flatten(1)
        if parameter.numel() <= SMALL:
            small.append(flat)
            continue
        large.append(flat)
    return [block for whole in (torch.cat(small, dim=1), *large) for block in torch.split(whole, BLOCK, dim=1)]


def _as_parameter(flat: Tensor, parameter: Tensor) -> Tensor:
    """A convolution's weights are summed as they are found, ``[O, H, W, I]``."""
    if parameter.dim() != 4:
        return flat.view(parameter.shape)
    outputs, inputs, height, width = parameter.shape
    return flat.view(outputs, height, width, inputs).permute(0, 3, 1, 2).contiguous()
