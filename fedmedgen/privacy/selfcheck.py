"""Before a site's first private step: the engine on the very model in use, against one row at a time."""

import copy
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedmedgen.errors import SelfCheckError
from fedmedgen.privacy.per_patient import LossPerRow, Rows, make_engine, num_rows, row_losses, trainable, training_mode

logger = logging.getLogger(__name__)

WORST_SHOWN = 5
NEGLIGIBLE = 1e-3  # of the whole gradient: a layer below it is compared with this share instead of its own size


@dataclass(frozen=True)
class SelfCheckResult:
    """How far the engine is from the truth on this model."""

    engine: str
    parameters: int
    patients: int
    rows: int
    clip_norms: tuple[float, ...]
    norms: tuple[float, ...]  # of the patients' gradients
    largest_error: float  # relative, over layers and clip norms
    worst_layers: tuple[tuple[str, float], ...]
    tolerance: float


def check_engine(
    engine_name: str,
    model: nn.Module,
    loss: LossPerRow,
    rows_factory: Callable[[int], Sequence[Rows]],
    clip_norms: Sequence[float] | None = None,
    tolerance: float = 1e-4,
) -> SelfCheckResult:
    """Compare the engine's clipped sums with gradients taken one row at a time, on a copy with random weights.

    `rows_factory(n)` gives n patients of random or phantom rows, never a real patient's. By default one clip norm lies
    among the patients' norms, one above and one below all of them.

    **Raises** `SelfCheckError` naming the layers that disagree, or the promise that is broken.
    """
    subject = _randomised(model)
    patients = list(rows_factory(5))
    buffers = {name: buffer.clone() for name, buffer in subject.named_buffers()}
    truths = [_gradient_row_by_row(subject, loss, rows) for rows in patients]
    norms = tuple(_norm(truth) for truth in truths)
    _check_norms(norms)
    if not clip_norms:
        clip_norms = (sorted(norms)[len(norms) // 2] * 0.999, max(norms) * 2, min(norms) / 2)
    clip_norms = tuple(sorted(clip_norms, reverse=True))  # unclipped first: a wrong layer stands alone there
    engine = make_engine(engine_name, subject, loss)
    names = [name for name, parameter in subject.named_parameters() if parameter.requires_grad]
    errors = dict.fromkeys(names, 0.0)
    for clip_norm in clip_norms:
        found = engine.clipped_sum(patients, clip_norm)
        at_this_clip = dict(zip(names, _errors(found, _clipped_sum(truths, norms, clip_norm)), strict=True))
        if not max(at_this_clip.values()) <= tolerance:
            raise SelfCheckError(_disagreement(engine_name, at_this_clip, tolerance))
        errors = {name: max(error, at_this_clip[name]) for name, error in errors.items()}
        _check_bounds(engine.clipped_sum(patients[:1], clip_norm), clip_norm, engine_name)
    worst = tuple(sorted(errors.items(), key=lambda item: -item[1])[:WORST_SHOWN])
    _check_zero(engine.clipped_sum([], clip_norms[0]), "no patients at all", engine_name)
    _check_zero(engine.clipped_sum([_spoiled(patients[0])], clip_norms[0]), "a patient with NaN rows", engine_name)
    if any(not torch.equal(buffers[name], buffer) for name, buffer in subject.named_buffers()):
        raise SelfCheckError("the model's buffers change while it trains: they would leave with no noise on them")
    logger.info("engine %s agrees with one row at a time to %.1e", engine_name, worst[0][1])
    size = sum(parameter.numel() for parameter in trainable(subject))
    rows = sum(num_rows(patient) for patient in patients)
    return SelfCheckResult(engine_name, size, len(patients), rows, clip_norms, norms, worst[0][1], worst, tolerance)


def _randomised(model: nn.Module) -> nn.Module:
    """A copy in which no weight is zero, so that no layer hides another's gradient."""
    subject = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in subject.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator).to(parameter)
            if parameter.dim() > 1:
                parameter.copy_(noise / math.sqrt(parameter[0].numel()))
            else:
                parameter.copy_(0.1 * noise + (1.0 if name.endswith("weight") else 0.0))
    return subject


def _gradient_row_by_row(model: nn.Module, loss: LossPerRow, rows: Rows) -> list[Tensor]:
    parameters, count = trainable(model), num_rows(rows)
    total = [torch.zeros_like(parameter, dtype=torch.float64) for parameter in parameters]
    with training_mode(model):
        for row in range(count):
            one = {key: value[row : row + 1] for key, value in rows.items()}
            value = row_losses(model, loss, one).sum()
            for part, gradient in zip(total, torch.autograd.grad(value, parameters, allow_unused=True), strict=True):
                if gradient is not None:
                    part += gradient.double() / count
    return total


def _clipped_sum(truths: Sequence[Sequence[Tensor]], norms: Sequence[float], clip_norm: float) -> list[Tensor]:
    total = [torch.zeros_like(part) for part in truths[0]]
    for truth, norm in zip(truths, norms, strict=True):
        for part, gradient in zip(total, truth, strict=True):
            part += gradient * min(1.0, clip_norm / norm)
    return total


def _errors(found: Sequence[Tensor], expected: Sequence[Tensor]) -> list[float]:
    floor = NEGLIGIBLE * _norm(expected)
    errors = []
    for got, wanted in zip(found, expected, strict=True):
        error = float((got.double() - wanted).norm()) / max(float(wanted.norm()), floor)
        errors.append(error if math.isfinite(error) else math.inf)
    return errors


def _norm(gradient: Sequence[Tensor]) -> float:
    return math.sqrt(sum(float(part.double().square().sum()) for part in gradient))


def _check_norms(norms: Sequence[float]) -> None:
    if not all(math.isfinite(norm) and norm > 0 for norm in norms):
        raise SelfCheckError(f"the rows must give gradients above zero and finite; their norms are {norms}")


def _check_bounds(clipped: Sequence[Tensor], clip_norm: float, engine: str) -> None:
    norm = _norm(clipped)
    if not norm <= clip_norm * (1 + 1e-5):
        raise SelfCheckError(f"engine {engine} gives one patient a norm of {norm:.6g}, above the clip {clip_norm:.6g}")


def _check_zero(clipped: Sequence[Tensor], who: str, engine: str) -> None:
    if _norm(clipped) != 0:
        raise SelfCheckError(f"engine {engine} gives {who} a sum that isn't zero")


def _spoiled(rows: Rows) -> dict[str, Tensor]:
    return {key: torch.full_like(v, math.nan) if v.is_floating_point() else v for key, v in rows.items()}


def _disagreement(engine: str, errors: dict[str, float], tolerance: float) -> str:
    wrong = sorted(((error, name) for name, error in errors.items() if not error <= tolerance), reverse=True)
    shown = ", ".join(f"{name} ({error:.2g})" for error, name in wrong[:WORST_SHOWN])
    more = f" and {len(wrong) - WORST_SHOWN} more" if len(wrong) > WORST_SHOWN else ""
    return (
        f"engine {engine} disagrees with one-at-a-time gradients by more than {tolerance:g} at {shown}{more}: "
        "the promised bound would not hold on this model; use privacy.engine=reference"
    )
