"""Every way there is to sum clipped gradients by patient, and the ordinary step they are measured against."""

from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from unittest import mock

import torch
from opacus.grad_sample import GradSampleHooks
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from fedmedgen.privacy import opacus_engine
from fedmedgen.privacy.fused_engine import FusedEngine
from fedmedgen.privacy.kernels import Measured
from fedmedgen.privacy.opacus_engine import OpacusEngine
from fedmedgen.privacy.per_patient import (
    ReferenceEngine,
    Rows,
    add_clipped,
    num_rows,
    row_losses,
    trainable,
    training_mode,
)
from fedmedgen.privacy.per_patient import zeros_like_parameters as zeros
from simulations.benchmarks.subject import loss

Step = Callable[[Sequence[Rows]], list[Tensor]]
ORDINARY_BATCH = 32  # rows; a batch of 128 at once is slower on one core
VMAP_CHUNK = 16
HOOKED_ROWS = 16  # at once: hooks are faster with 16 than with 32 or 64, and take a third of the memory


def methods(model: nn.Module, clip_norm: float, *, hooked_rows: int = HOOKED_ROWS) -> dict[str, Step]:
    """By name: from patients to the sum over them; the two `ordinary` ones know no patients and do not clip.

    "hooks" are Opacus' as this package has them, 64 rows at once and sums in double precision patient by patient;
    "hooks_einsum" clip and add as Opacus' own optimiser does, `hooked_rows` at once. "opake" is there where
    opake-dpsgd is installed. "measured" ones take the kernels found fastest, others those of the rule.
    """

    def by(engine: object) -> Step:
        return lambda patients: engine.clipped_sum(patients, clip_norm)  # type: ignore[attr-defined, no-any-return]

    optional = {"opake": partial(_opake, model, clip_norm)} if find_spec("opake") else {}
    return {
        "ordinary_fp32": partial(_ordinary, model, "fp32"),
        "ordinary_bf16": partial(_ordinary, model, "bf16"),
        "one_at_a_time": by(ReferenceEngine(model, loss)),
        "hooks": by(OpacusEngine(model, loss, 4 * hooked_rows)),
        "hooks_einsum": partial(_einsum, OpacusEngine(model, loss, hooked_rows), clip_norm),
        "functorch": partial(_functorch, OpacusEngine(model, loss, hooked_rows), clip_norm),
        "vmap": partial(_vmap, model, clip_norm),
        **optional,
        "fused_fp32": by(FusedEngine(model, loss)),
        "fused_bf16": by(FusedEngine(model, loss, precision="bf16")),
        "fused_measured_fp32": measured(model, "fp32", clip_norm),
        "fused_measured_bf16": measured(model, "bf16", clip_norm),
    }


def measured(model: nn.Module, precision: str, clip_norm: float) -> Step:
    """The fused engine with the kernels found fastest; each shape is timed the first time."""
    kernels = Measured()
    engine = FusedEngine(model, loss, precision=precision, choose=kernels)

    def step(patients: Sequence[Rows]) -> list[Tensor]:
        with kernels.measuring():
            return engine.clipped_sum(patients, clip_norm)

    return step


def _ordinary(model: nn.Module, precision: str, patients: Sequence[Rows]) -> list[Tensor]:
    rows = {key: torch.cat([own[key] for own in patients]) for key in patients[0]}
    parameters = trainable(model)
    total = zeros(parameters)
    count = len(rows["x"])
    for start in range(0, count, ORDINARY_BATCH):
        part = {key: value[start : start + ORDINARY_BATCH] for key, value in rows.items()}
        mean = row_losses(model, loss, part, precision).sum() / count
        for whole, own in zip(total, torch.autograd.grad(mean, parameters), strict=True):
            whole += own
    return total


def _einsum(engine: OpacusEngine, clip_norm: float, patients: Sequence[Rows]) -> list[Tensor]:
    """Opacus' hooks, and its optimiser's contraction: one sum over the patients of a batch, in single precision.

    The patients have equally many rows.
    """
    total = [torch.zeros_like(parameter) for parameter in trainable(engine._model)]
    rows = num_rows(patients[0])
    size = max(1, engine._max_rows // rows)
    with training_mode(engine._model), opacus_engine._hooked(engine._model):
        for start in range(0, len(patients), size):
            chunk = patients[start : start + size]
            joined = {key: torch.cat([own[key] for own in chunk]) for key in chunk[0]}
            found = [part.view(len(chunk), rows, *part.shape[1:]).mean(dim=1) for part in engine._row_gradients(joined)]
            norms = torch.stack([part.flatten(1).norm(dim=1) for part in found]).norm(dim=0)
            factors = (clip_norm / norms).clamp(max=1)
            for whole, part in zip(total, found, strict=True):
                whole += torch.einsum("i,i...", factors, part)
    return total


def _functorch(engine: OpacusEngine, clip_norm: float, patients: Sequence[Rows]) -> list[Tensor]:
    with mock.patch.object(opacus_engine, "GradSampleHooks", partial(GradSampleHooks, force_functorch=True)):
        return engine.clipped_sum(patients, clip_norm)


def _vmap(model: nn.Module, clip_norm: float, patients: Sequence[Rows]) -> list[Tensor]:
    """`torch.func`: a patient's mean loss, differentiated, mapped over patients of equally many rows."""
    weights = _weights(model)
    each = vmap(grad(partial(_mean_loss, model)), in_dims=(None, 0))
    total = zeros(trainable(model))
    for start in range(0, len(patients), VMAP_CHUNK):
        chunk = patients[start : start + VMAP_CHUNK]
        found = each(weights, _stacked(chunk))
        for patient in range(len(chunk)):
            add_clipped(total, [found[name][patient] for name in weights], clip_norm)
    return total


def _opake(model: nn.Module, clip_norm: float, patients: Sequence[Rows]) -> list[Tensor]:
    """opake's own clipped gradient of a patient's mean loss, in microbatches as large as vmap's."""
    from opake.dpsgd.clipping import clipped_grad

    clipped, state = clipped_grad(partial(_mean_loss, model), clipping_norm=clip_norm, microbatch_size=VMAP_CHUNK)
    weights = _weights(model)
    found, _ = clipped(weights, _stacked(patients), state=state)
    return [found.pytree[name] for name in weights]


def _mean_loss(model: nn.Module, weights: dict[str, Tensor], rows: dict[str, Tensor]) -> Tensor:
    """Of one patient, under these weights."""

    def run(*arguments: Tensor, **options: object) -> object:
        return functional_call(model, weights, arguments, options)

    return loss(run, rows).mean()  # type: ignore[arg-type]


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}


def _stacked(patients: Sequence[Rows]) -> dict[str, Tensor]:
    return {key: torch.stack([rows[key] for rows in patients]) for key in patients[0]}
