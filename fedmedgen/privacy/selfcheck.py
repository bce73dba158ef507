"""Before a site's first private step: the engine on the very model in use, against one row at a time."""

import copy
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedmedgen.errors import SelfCheckError
from fedmedgen.privacy.per_patient import (
    Engine,
    LossPerRow,
    Rows,
    make_engine,
    num_rows,
    row_losses,
    trainable,
    training_mode,
)

logger = logging.getLogger(__name__)

WORST_SHOWN = 5
# Of the whole gradient: a layer below it is compared with this share instead of its own size. In bf16 what is zero in
# exact arithmetic (the bias of attention's keys) is rounding noise of a few percent of it.
NEGLIGIBLE = {"fp32": 1e-3, "bf16": 3e-2}
# Relative, by layer; a layer that is missed is wrong by 1. The truth is computed in the same precision: in fp32 sums
# taken in another order are found up to 5e-5 apart, in bf16 (units of 2^-8) up to 0.015, by processor. An engine that
# rounds elsewhere in bf16 is found up to 0.017 on the studies' networks; one on which it is beyond 2^-5 is refused,
# though not wrong.
TOLERANCES = {"fp32": 1e-4, "bf16": 2**-5}
ISOLATION = 1e-8  # of the clip: the most that one patient may move the others' sum; a thousand then move 1e-5


@dataclass(frozen=True)
class SelfCheckResult:
    """How far the engine is from the truth on this model."""

    engine: str
    precision: str
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
    precision: str = "fp32",
) -> SelfCheckResult:
    """Compare the engine's clipped sums with gradients taken one row at a time, on a copy with random weights.

    `rows_factory(n)` gives n patients of random or phantom rows, never a real patient's. By default one clip norm lies
    among the patients' norms, one above and one below all of them.

    **Raises** `SelfCheckError` naming the layers that disagree, or the promise that is broken.
    """
    if precision != "fp32":  # first what rounding can't hide
        check_engine(engine_name, model, loss, rows_factory, clip_norms)
    subject = _randomised(model)
    patients = list(rows_factory(5))
    buffers = {name: buffer.clone() for name, buffer in subject.named_buffers()}
    engine = make_engine(engine_name, subject, loss, precision=precision)
    truths = [_gradient_row_by_row(subject, loss, rows, precision) for rows in patients]
    norms = tuple(_norm(truth) for truth in truths)
    _check_norms(norms)
    if not clip_norms:
        clip_norms = (sorted(norms)[len(norms) // 2] * 0.999, max(norms) * 2, min(norms) / 2)
    clip_norms = tuple(sorted(clip_norms, reverse=True))  # unclipped first: a wrong layer stands alone there
    names = [name for name, parameter in subject.named_parameters() if parameter.requires_grad]
    who, tolerance = f"engine {engine_name} ({precision})", TOLERANCES[precision]
    engine.clipped_sum(patients[:1], 1.0)
    used = engine_name if getattr(engine, "instead", None) is None else f"reference, in the place of {engine_name}"
    errors = dict.fromkeys(names, 0.0)
    for clip_norm in clip_norms:
        whole = engine.clipped_sum(patients, clip_norm)
        at_this_clip = dict(zip(names, _errors(whole, _clipped_sum(truths, norms, clip_norm), precision), strict=True))
        if not max(at_this_clip.values()) <= tolerance:
            raise SelfCheckError(_disagreement(who, at_this_clip, tolerance, precision))
        errors = {name: max(error, at_this_clip[name]) for name, error in errors.items()}
    _check_bounds(engine, patients, whole, clip_norms[-1], who)
    if any(not torch.equal(buffers[name], buffer) for name, buffer in subject.named_buffers()):
        raise SelfCheckError("the model's buffers change while it trains: they would leave with no noise on them")
    worst = tuple(sorted(errors.items(), key=lambda item: -item[1])[:WORST_SHOWN])
    logger.info("%s agrees with one row at a time to %.1e", who, worst[0][1])
    size, rows = sum(p.numel() for p in trainable(subject)), sum(map(num_rows, patients))
    return SelfCheckResult(used, precision, size, len(patients), rows, clip_norms, norms, worst[0][1], worst, tolerance)


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


def _gradient_row_by_row(model: nn.Module, loss: LossPerRow, rows: Rows, precision: str) -> list[Tensor]:
    parameters, count = trainable(model), num_rows(rows)
    total = [torch.zeros_like(parameter, dtype=torch.float64) for parameter in parameters]
    with training_mode(model):
        for row in range(count):
            one = {key: value[row : row + 1] for key, value in rows.items()}
            value = row_losses(model, loss, one, precision).sum()
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


def _errors(found: Sequence[Tensor], expected: Sequence[Tensor], precision: str) -> list[float]:
    floor = NEGLIGIBLE[precision] * _norm(expected)
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


def _check_bounds(
    engine: Engine, patients: Sequence[Rows], whole: Sequence[Tensor], clip_norm: float, who: str
) -> None:
    """Each of the promises about who moves what; `whole` is the sum of all, at a clip that clips them all."""
    newcomer = {key: value[:1] for key, value in patients[0].items()}  # one row: it shifts all others to other places
    joined = engine.clipped_sum([newcomer, *patients], clip_norm)
    hers = [a - b for a, b in zip(joined, whole, strict=True)]
    if not _norm(hers) <= clip_norm * (1 + 1e-5):
        raise SelfCheckError(f"{who} gives one patient a norm of {_norm(hers):.6g}, above the clip {clip_norm:.6g}")
    moves = "moves a patient's part when others come or go"
    again = "gives the same patients another sum, by kernels that don't repeat themselves"
    checks = (
        (engine.clipped_sum(patients, clip_norm), whole, again),
        (engine.clipped_sum([newcomer], clip_norm), hers, moves),
        (engine.clipped_sum([*patients] * 4, clip_norm), [4 * part for part in whole], moves),
        (engine.clipped_sum([_spoiled(newcomer), *patients], clip_norm), whole, "lets a patient with NaN move the sum"),
        (engine.clipped_sum([], clip_norm), [torch.zeros_like(part) for part in whole], "gives nobody a sum"),
    )
    for found, expected, fault in checks:
        moved = _norm([a - b for a, b in zip(found, expected, strict=True)]) / clip_norm
        if not moved <= ISOLATION:
            raise SelfCheckError(f"{who} {fault}: by {moved:.2g} of the clip; {_advice(who)}")


def _spoiled(rows: Rows) -> dict[str, Tensor]:
    return {key: torch.full_like(v, math.nan) if v.is_floating_point() else v for key, v in rows.items()}


def _disagreement(who: str, errors: dict[str, float], tolerance: float, precision: str) -> str:
    wrong = sorted(((error, name) for name, error in errors.items() if not error <= tolerance), reverse=True)
    shown = ", ".join(f"{name} ({error:.2g})" for error, name in wrong[:WORST_SHOWN])
    more = f" and {len(wrong) - WORST_SHOWN} more" if len(wrong) > WORST_SHOWN else ""
    return f"{who} disagrees with one-at-a-time gradients by more than {tolerance:g} at {shown}{more}: " + (
        f"the promised bound would not hold on this model; {_advice(who)}"
        if precision == "fp32"
        else "it rounds otherwise on this model, though in fp32 it is right: use privacy.precision=fp32"
    )


def _advice(who: str) -> str:
    if "reference" in who:
        return "the model or its loss mixes rows or remembers them: it can't be trained under privacy"
    return "use privacy.engine=reference"
