"""Weight gradients by patient: one contraction over all rows and positions of a patient, never over the batch.

Every function takes the batch as `patients` groups of equally many rows, in order, and gives `[patients, *weight]`.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

Pair = tuple[int, int]
Window = tuple[Pair, Pair, Pair]  # stride, padding, dilation

# Positions of a patient (her rows x output pixels) from which, on a CPU, a call of oneDNN for each patient beats one
# batched product of unfolded inputs: measured once, for all shapes of a UNet at 32 x 32 (docs/results/fused-engine.md).
# A rule, not a stopwatch at run time: the same seed gives the same bits, and what the self-check saw is what runs.
ONE_BY_ONE_FROM = {torch.float32: 256, torch.bfloat16: 1024}

FEWEST_CHANNELS = 8  # of which oneDNN takes convolutions in channels_last; fewer are unfolded, which is little


def linear_weight(x: Tensor, dy: Tensor, patients: int) -> Tensor:
    """**Shapes** x ``[B, …, I]``, dy ``[B, …, O]`` -> ``[patients, O, I]``."""
    x, dy = (t.reshape(patients, -1, t.shape[-1]) for t in (x, dy))
    return torch.bmm(dy.transpose(1, 2), x)


def convolution_weight(x: Tensor, dy: Tensor, weight: Tensor, patients: int, how: Window) -> Tensor:
    """**Shapes** x ``[B, I, H, W]``, dy ``[B, O, H', W']``, both channels_last -> ``[patients, O, I, kH, kW]``.

    The result lies in memory as ``[patients, O, kH, kW, I]``.
    """
    outputs, inputs, *window = weight.shape
    pointwise = (*window, *how[0], *how[1]) == (1, 1, 1, 1, 0, 0)
    positions = dy.numel() // (outputs * patients) if inputs >= FEWEST_CHANNELS else 0
    if not pointwise and x.device.type == "cpu" and positions >= ONE_BY_ONE_FROM.get(x.dtype, math.inf):
        found = x.new_empty(patients, outputs, *window, inputs).permute(0, 1, 4, 2, 3)
        each = zip(x.chunk(patients), dy.chunk(patients), found, strict=True)
        for rows, gradient, own in each:
            own.copy_(_weight_alone(rows, gradient, weight, how))
        return found
    columns = x.movedim(1, -1) if pointwise else _unfolded(x, (window[0], window[1]), how)
    found = linear_weight(columns, dy.movedim(1, -1), patients)
    return found.view(patients, outputs, *window, inputs).permute(0, 1, 4, 2, 3)


def embedding_weight(indices: Tensor, dy: Tensor, patients: int, count: int) -> Tensor:
    """**Shapes** indices ``[B, …]``, dy ``[B, …, D]`` -> ``[patients, count, D]``."""
    found = dy.new_zeros(patients, count, dy.shape[-1])
    first = count * torch.arange(patients, device=dy.device)[:, None]
    places = (indices.reshape(patients, -1) + first).flatten()
    found.view(-1, dy.shape[-1]).index_add_(0, places, dy.reshape(-1, dy.shape[-1]))
    return found


def _weight_alone(x: Tensor, dy: Tensor, weight: Tensor, how: Window) -> Tensor:
    found: Tensor = torch.ops.aten.convolution_backward(
        dy, x, weight, None, *how, False, (0, 0), 1, (False, True, False)
    )[1]
    return found


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
