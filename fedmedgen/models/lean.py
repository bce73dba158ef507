"""A denoiser for drawing alone: weights in bfloat16, channels last, and no pass over the data that changes nothing."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from fedmedgen.models.denoiser import Denoiser
from fedmedgen.models.generators import Generator

LONGEST_ATTENTION = 1024  # tokens; beyond, torch's own attention


def lean(denoiser: Denoiser) -> Denoiser:
    """A copy that draws the same images to bfloat16's rounding; noise levels and samples stay in single precision."""
    copied = copy.copy(denoiser)  # of the family's own class: a latent one keeps its autoencoder
    copied._modules = {**denoiser._modules, "unet": LeanNetwork(denoiser.unet)}
    return copied


def drawing_in(generator: Generator, precision: str) -> Generator:
    """The generator as it draws in "fp32" or "bf16": a lean copy of a denoiser; others know no other precision."""
    return lean(generator) if precision == "bf16" and isinstance(generator, Denoiser) else generator


class LeanNetwork(nn.Module):
    """A network called as `UNet2DModel` is, in bfloat16 inside."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        inner = copy.deepcopy(network).eval().requires_grad_(False)
        self.inner = nn.Module.to(inner, torch.bfloat16, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.config = network.config

    def forward(self, x: Tensor, timestep: Tensor, **how: Any) -> tuple[Tensor]:
        x = x.to(torch.bfloat16, memory_format=torch.channels_last)
        with LeanCalls():
            return (self.inner(x, timestep, **how)[0].float(),)


class LeanCalls(TorchFunctionMode):
    """Group norms inside in single precision, short attention as plain products, no division by one.

    In bfloat16 torch's own kernels for these are slower than in single precision, on a CPU up to twenty times.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _CALLS.get(func, func)(*args, **(kwargs or {}))


def _group_norm(x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float = 1e-5) -> Tensor:
    weight, bias = (value if value is None else value.float() for value in (weight, bias))
    return F.group_norm(x.float(), groups, weight, bias, eps).to(x.dtype)


def _attention(query: Tensor, key: Tensor, value: Tensor, *options: Any, **named: Any) -> Tensor:
    plain = not options and all(value is None or value is False or value == 0.0 for value in _settings(named))
    if not plain or key.shape[-2] > LONGEST_ATTENTION or query.device.type != "cpu":
        found: Tensor = F.scaled_dot_product_attention(query, key, value, *options, **named)
        return found
    weights = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    return torch.matmul(weights.softmax(dim=-1), value)


def _divided(x: Tensor, by: Any, **named: Any) -> Tensor:
    return x if type(by) is float and by == 1 and x.is_floating_point() and not named else torch.div(x, by, **named)


def _settings(named: Mapping[str, Any]) -> list[Any]:
    """What isn't plain attention: a mask counts as True, whatever it holds."""
    return [True if isinstance(value, Tensor) else value for value in named.values()]


_CALLS: dict[Callable[..., Any], Callable[..., Any]] = {
    F.group_norm: _group_norm,
    F.scaled_dot_product_attention: _attention,
    Tensor.div: _divided,
    Tensor.__truediv__: _divided,
}
