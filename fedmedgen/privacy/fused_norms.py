"""Group and layer normalisation of the fused engine."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fedmedgen.privacy.fused_layers import Context, Layer, summed
from fedmedgen.privacy.per_patient import at_least


class GroupNorm(torch.autograd.Function):
    """`group_norm` in channels_last, inside in single precision."""

    @staticmethod
    def forward(
        ctx: Context, x: Tensor, weight: Tensor, bias: Tensor, how: tuple[int, float], layer: Layer, *_: Any
    ) -> Tensor:
        groups, eps = how
        pixels = _pixels(x)
        mean = _by_channel(_over_group(pixels.mean(dim=1), groups), pixels)
        variance = _over_group((pixels - mean).square_().mean(dim=1), groups)
        inverse = _by_channel((variance + eps).rsqrt(), pixels)
        slope = inverse * weight
        ctx.save_for_backward(x, mean, inverse, weight)
        ctx.groups, ctx.layer = groups, layer
        return _like(torch.addcmul(bias - mean * slope, pixels, slope), x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, dy: Tensor) -> tuple[Any, ...]:
        x, mean, inverse, weight = ctx.saved_tensors
        layer, sink = ctx.layer, ctx.layer.sink
        pixels, inputs = _pixels(dy), _pixels(x)
        plain, room = pixels.sum(dim=1), pixels * inputs
        scaled = (room.sum(dim=1) - mean[:, 0] * plain) * inverse[:, 0]
        layer.add_bias(lambda: sink.by_patient(plain))
        layer.add_weight(lambda: sink.by_patient(scaled))
        dx = None
        if ctx.needs_input_grad[0]:
            shared = weight / inputs.shape[1]
            first = _by_channel(_over_group(plain * shared, ctx.groups), pixels)
            slope = -inverse.square() * _by_channel(_over_group(scaled * shared, ctx.groups), pixels)
            dx = torch.addcmul(-inverse * first - slope * mean, inputs, slope, out=room)
            dx = _like(dx.addcmul_(pixels, inverse * weight), dy)
        return dx, *[None] * (len(ctx.needs_input_grad) - 1)


class LayerNorm(torch.autograd.Function):
    """`layer_norm` over the last dimension."""

    @staticmethod
    def forward(
        ctx: Context, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, layer: Layer, *_: Any
    ) -> Tensor:
        y, mean, inverse = torch.native_layer_norm(x, weight.shape, weight, bias, eps)
        ctx.save_for_backward(x, mean, inverse, weight)
        ctx.layer = layer
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, dy: Tensor) -> tuple[Any, ...]:
        x, mean, inverse, weight = ctx.saved_tensors
        layer, patients = ctx.layer, ctx.layer.sink.patients
        layer.add_bias(lambda: summed(dy, patients))
        layer.add_weight(lambda: summed(dy * ((x - mean) * inverse), patients))
        dx = None
        if ctx.needs_input_grad[0]:
            mask = (True, False, False)
            dx = torch.ops.aten.native_layer_norm_backward(dy, x, weight.shape, mean, inverse, weight, None, mask)[0]
        return dx, *[None] * (len(ctx.needs_input_grad) - 1)


def _pixels(x: Tensor) -> Tensor:
    """``[B, C, …]`` -> ``[B, pixels, C]`` in one piece, at least in single precision."""
    pixels = x.flatten(2).transpose(1, 2) if x.dim() > 2 else x[:, None]
    return pixels.to(at_least(torch.float32, x), memory_format=torch.contiguous_format).contiguous()


def _like(pixels: Tensor, x: Tensor) -> Tensor:
    return pixels.to(x.dtype).transpose(1, 2).view(x.shape)


def _over_group(by_channel: Tensor, groups: int) -> Tensor:
    """Means over the channels of a group: ``[B, C]`` -> ``[B, G]``."""
    return by_channel.view(len(by_channel), groups, -1).mean(dim=2)


def _by_channel(by_group: Tensor, pixels: Tensor) -> Tensor:
    """``[B, G]`` -> ``[B, 1, C]``."""
    return by_group.repeat_interleave(pixels.shape[2] // by_group.shape[1], dim=1)[:, None]
