"""Weight gradients by patient: one contraction over all rows and positions of a patient, never over the batch.

Every function takes the batch as `patients` groups of equally many rows, in order, and gives `[patients, *weight]`.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Pair = tuple[int, int]
Window = tuple[Pair, Pair, Pair]  # stride, padding, dilation

# Positions of a patient (her rows x output pixels) from which, on a CPU, a call of oneDNN for each patient beats one
# batched product of unfolded inputs: measured once, for all shapes of a UNet at 32 x 32 (docs/results/fused-engine.md).
ONE_BY_ONE_FROM = {torch.float32: 256, torch.bfloat16: 1024}

FEWEST_CHANNELS = 8  # of which oneDNN takes convolutions in channels_last; fewer are unfolded, which is little

ONE_BY_ONE, UNFOLDED = "one by one", "unfolded"  # the kernels of `convolution_weight`
Choose = Callable[[Tensor, Tensor, Tensor, int, Window], str]
"""From the arguments of `convolution_weight` to the kernel that takes them, by their shapes alone."""


def linear_weight(x: Tensor, dy: Tensor, patients: int) -> Tensor:
    """**Shapes** x ``[B, …, I]``, dy ``[B, …, O]`` -> ``[patients, O, I]``."""
    x, dy = (t.reshape(patients, -1, t.shape[-1]) for t in (x, dy))
    return torch.bmm(dy.transpose(1, 2), x)


def by_rule(x: Tensor, dy: Tensor, weight: Tensor, patients: int, _: Window) -> str:
    """The kernel that was the faster where the rule was measured: the same seed gives the same bits on any machine."""
    if x.device.type != "cpu" or weight.shape[1] < FEWEST_CHANNELS:
        return UNFOLDED
    positions = dy.numel() // (weight.shape[0] * patients)
    return ONE_BY_ONE if positions >= ONE_BY_ONE_FROM.get(x.dtype, math.inf) else UNFOLDED


def convolution_weight(
    x: Tensor, dy: Tensor, weight: Tensor, patients: int, how: Window, choose: Choose = by_rule
) -> Tensor:
    """**Shapes** x ``[B, I, H, W]``, dy ``[B, O, H', W']``, both channels_last -> ``[patients, O, I, kH, kW]``.

    The result lies in memory as ``[patients, O, kH, kW, I]``.
    """
    if (*weight.shape[2:], *how[0], *how[1]) == (1, 1, 1, 1, 0, 0):
        return _placed(linear_weight(x.movedim(1, -1), dy.movedim(1, -1), patients), weight)
    return KERNELS[choose(x, dy, weight, patients, how)](x, dy, weight, patients, how)


def embedding_weight(indices: Tensor, dy: Tensor, patients: int, count: int) -> Tensor:
    """**Shapes** indices ``[B, …]``, dy ``[B, …, D]`` -> ``[patients, count, D]``."""
    found = dy.new_zeros(patients, count, dy.shape[-1])
    first = count * torch.arange(patients, device=dy.device)[:, None]
    places = (indices.reshape(patients, -1) + first).flatten()
    found.view(-1, dy.shape[-1]).index_add_(0, places, dy.reshape(-1, dy.shape[-1]))
    return found


def _one_by_one(x: Tensor, dy: Tensor, weight: Tensor, patients: int, how: Window) -> Tensor:
    outputs, inputs, *window = weight.shape
    found = x.new_empty(patients, outputs, *window, inputs).permute(0, 1, 4, 2, 3)
    mask = (False, True, False)
    for rows, gradient, own in zip(x.chunk(patients), dy.chunk(patients), found, strict=True):
        own.copy_(torch.ops.aten.convolution_backward(gradient, rows, weight, None, *how, False, (0, 0), 1, mask)[1])
    return found


def _unfolded_product(x: Tensor, dy: Tensor, weight: Tensor, patients: int, how: Window) -> Tensor:
    height, width = weight.shape[2:]
    return _placed(linear_weight(_unfolded(x, (height, width), how), dy.movedim(1, -1), patients), weight)


def _placed(found: Tensor, weight: Tensor) -> Tensor:
    outputs, inputs, *window = weight.shape
    return found.view(len(found), outputs, *window, inputs).permute(0, 1, 4, 2, 3)


def _unfolded(x: Tensor, window: Pair, how: Window) -> Tensor:
    """Each output pixel's window: ``[B, H', W', kH * kW * I]``."""
    stride, padding, dilation = how
    padded = F.pad(x.movedim(1, -1), (0, 0, padding[1], padding[1], padding[0], padding[0]))
    batch, height, width, channels = padded.shape
    down = (height - dilation[0] * (window[0] - 1) - 1) // stride[0] + 1
    across = (width - dilation[1] * (window[1] - 1) - 1) // stride[1] + 1
    whole, row, pixel, channel = padded.stride()
    windows = padded.as_strided(
        (batch, down, across, *window, channels),
        (whole, row * stride[0], pixel * stride[1], row * dilation[0], pixel * dilation[1], channel),
    )
    return windows.reshape(batch, down, across, -1)


KERNELS = {ONE_BY_ONE: _one_by_one, UNFOLDED: _unfolded_product}
