"""Layers whose backward gives the input's gradient and each patient's weight gradient, never the batch's.

Each hands what it finds to a `Sink` and tells autograd nothing about its weights: a gradient that autograd does find
for a weight comes from a use of it that no layer here saw.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fedmedgen.privacy.contractions import Choose, Window, by_rule, convolution_weight, embedding_weight, linear_weight
from fedmedgen.privacy.per_patient import at_least

Context = Any  # of an autograd function


class ClosedError(RuntimeError):
    """A pass backward that isn't the engine's."""


@dataclass
class Sink:
    """The gradients of one batch, ``[patients, *parameter]`` each, added up over all uses of a parameter."""

    patients: int
    rows: int  # of each patient
    choose: Choose = by_rule  # the kernel that takes a convolution's weights
    found: dict[Tensor, Tensor] = field(default_factory=dict)
    is_open: bool = False  # only during the engine's own pass backward

    def add(self, parameter: Tensor, gradient: Tensor) -> None:
        """**Raises** `ClosedError` in any other pass: a gradient inside the loss would count as a patient's."""
        if not self.is_open:
            raise ClosedError("a gradient that is taken inside the loss")
        earlier = self.found.get(parameter)
        self.found[parameter] = gradient if earlier is None else earlier + gradient

    def by_patient(self, by_row: Tensor) -> Tensor:
        """Sums over the rows of each patient: ``[B, C]`` -> ``[patients, C]``."""
        return by_row if self.rows == 1 else by_row.view(self.patients, self.rows, -1).sum(dim=1)


@dataclass(frozen=True)
class Layer:
    """A layer's own parameters (None where it has none that train), and where their gradients go."""

    sink: Sink
    weight: Tensor | None
    bias: Tensor | None

    def add_weight(self, gradient: Callable[[], Tensor]) -> None:
        if self.weight is not None:
            self.sink.add(self.weight, gradient())

    def add_bias(self, gradient: Callable[[], Tensor]) -> None:
        if self.bias is not None:
            self.sink.add(self.bias, gradient())


class Convolution(torch.autograd.Function):
    """`conv2d` in channels_last."""

    @staticmethod
    def forward(
        ctx: Context,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        how: Window,
        layer: Layer,
        *_: Any,
    ) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        ctx.save_for_backward(x, weight)
        ctx.how, ctx.layer = how, layer
        return torch.conv2d(x, weight, bias, *how)

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, dy: Tensor) -> tuple[Any, ...]:
        x, weight = ctx.saved_tensors
        layer, patients = ctx.layer, ctx.layer.sink.patients
        dy = dy.contiguous(memory_format=torch.channels_last)
        layer.add_bias(lambda: summed(dy.movedim(1, -1), patients))
        layer.add_weight(lambda: convolution_weight(x, dy, weight, patients, ctx.how, layer.sink.choose))
        dx = None
        if ctx.needs_input_grad[0]:
            mask = (True, False, False)
            dx = torch.ops.aten.convolution_backward(dy, x, weight, None, *ctx.how, False, (0, 0), 1, mask)[0]
        return dx, *[None] * (len(ctx.needs_input_grad) - 1)


class Linear(torch.autograd.Function):
    """`linear` over the last dimension."""

    @staticmethod
    def forward(ctx: Context, x: Tensor, weight: Tensor, bias: Tensor | None, layer: Layer, *_: Any) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.layer = layer
        return nn.functional.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, dy: Tensor) -> tuple[Any, ...]:
        x, weight = ctx.saved_tensors
        layer, patients = ctx.layer, ctx.layer.sink.patients
        layer.add_bias(lambda: summed(dy, patients))
        layer.add_weight(lambda: linear_weight(x, dy, patients))
        dx = dy @ weight if ctx.needs_input_grad[0] else None
        return dx, *[None] * (len(ctx.needs_input_grad) - 1)


class Embedding(torch.autograd.Function):
    """Rows of a table."""

    @staticmethod
    def forward(ctx: Context, indices: Tensor, weight: Tensor, layer: Layer, *_: Any) -> Tensor:
        ctx.save_for_backward(indices)
        ctx.layer = layer
        return nn.functional.embedding(indices, weight)  # refuses what would count from the end

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, dy: Tensor) -> tuple[Any, ...]:
        (indices,), layer = ctx.saved_tensors, ctx.layer
        layer.add_weight(lambda: embedding_weight(indices, dy, layer.sink.patients, layer.weight.shape[0]))
        return (None,) * len(ctx.needs_input_grad)


class Attention(torch.autograd.Function):
    """Softmax attention that keeps its weights: for sequences so short that recomputing them costs more."""

    @staticmethod
    def forward(ctx: Context, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        *batch, tokens, width = query.shape
        q, k, v = ((t.reshape(-1, *t.shape[-2:])) for t in (query * width**-0.5, key, value))
        weights = torch.bmm(q, k.transpose(1, 2)).softmax(dim=-1)
        ctx.save_for_backward(q, k, v, weights)
        return torch.bmm(weights, v).view(*batch, tokens, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, weights = ctx.saved_tensors
        shape, dy = dy.shape, dy.reshape(-1, *dy.shape[-2:])
        dv = torch.bmm(weights.transpose(1, 2), dy)
        ds = torch._softmax_backward_data(torch.bmm(dy, v.transpose(1, 2)), weights, -1, weights.dtype)
        dq = torch.bmm(ds, k).mul_(1 / math.sqrt(q.shape[-1]))
        dk = torch.bmm(ds.transpose(1, 2), q)
        return dq.view(*shape[:-1], -1), dk.view(*shape[:-2], *dk.shape[1:]), dv.view(*shape[:-2], *dv.shape[1:])


def summed(gradient: Tensor, patients: int) -> Tensor:
    """Over all of a patient's rows and places: ``[B, …, C]`` -> ``[patients, C]``, at least in single precision."""
    return gradient.reshape(patients, -1, gradient.shape[-1]).sum(dim=1, dtype=at_least(torch.float32, gradient))
