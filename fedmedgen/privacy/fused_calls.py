"""While a network runs, its calls of layers with weights that train become calls of the fused layers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from fedmedgen.errors import PrivacyError
from fedmedgen.privacy import fused_layers as fused
from fedmedgen.privacy.fused_layers import Layer, Sink

LONGEST_ATTENTION = 1024  # tokens; beyond, torch's own attention, which keeps no tokens x tokens weights


class UnknownUseError(PrivacyError):
    """A layer, or a use of a weight, that the fused engine can't take; says which."""


class FusedCalls(TorchFunctionMode):
    """`conv2d`, `linear`, `group_norm`, `layer_norm` and `embedding` on trainable weights, by patient.

    It acts on the functions that layers call, so a weight may be shared, used twice, or used without its module.
    """

    def __init__(self, sink: Sink, names: Mapping[Tensor, str], weights: "Weights") -> None:
        super().__init__()
        self._sink, self._names, self._weights = sink, names, weights
        self._calls: dict[Callable[..., Any], Callable[..., Any]] = {
            torch.conv2d: self._conv2d,
            F.linear: self._linear,
            F.group_norm: self._group_norm,
            F.layer_norm: self._layer_norm,
            F.embedding: self._embedding,
            F.scaled_dot_product_attention: _attention,
            Tensor.div: _divided,
            Tensor.__truediv__: _divided,
        }

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        call = self._calls.get(func)
        return func(*args, **(kwargs or {})) if call is None else call(*args, **(kwargs or {}))

    def _conv2d(  # noqa: PLR0913  (torch's own arguments)
        self, x: Tensor, weight: Tensor, bias: Tensor | None = None,
        stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1,
    ) -> Tensor:  # fmt: skip
        if (layer := self._layer(weight, bias)) is None:
            return torch.conv2d(x, weight, bias, stride, padding, dilation, groups)
        if x.dim() != 4 or groups != 1 or isinstance(padding, str):
            raise self._unknown(weight, "a convolution of groups, or padded by name")
        self._check_rows(x, weight, exact=True)
        how = (_pair(stride), _pair(padding), _pair(dilation))
        x, weight, bias = self._weights.cast(x, weight, bias)
        return self._apply(fused.Convolution, layer, x, weight, bias, how)

    def _linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if (layer := self._layer(weight, bias)) is None:
            return F.linear(x, weight, bias)
        self._check_rows(x, weight)
        return self._apply(fused.Linear, layer, *self._weights.cast(x, weight, bias))

    def _group_norm(
        self, x: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
    ) -> Tensor:
        if weight is None or bias is None or (layer := self._layer(weight, bias)) is None:
            return F.group_norm(x, num_groups, weight, bias, eps)
        self._check_rows(x, weight, exact=True)
        return self._apply(fused.GroupNorm, layer, x, weight.detach(), bias.detach(), (num_groups, eps))

    def _layer_norm(
        self, x: Tensor, normalized_shape: Sequence[int],
        weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5,
    ) -> Tensor:  # fmt: skip
        if weight is None or (layer := self._layer(weight, bias)) is None:
            return F.layer_norm(x, normalized_shape, weight, bias, eps)
        if weight.dim() != 1:
            raise self._unknown(weight, "a LayerNorm over several dimensions")
        self._check_rows(x, weight)
        x = x if x.device.type == "cpu" else x.to(weight.dtype)  # as autocast has it on a GPU
        return self._apply(fused.LayerNorm, layer, x, weight.detach(), None if bias is None else bias.detach(), eps)

    def _embedding(self, indices: Tensor, weight: Tensor, *options: Any, **named: Any) -> Tensor:
        if (layer := self._layer(weight, None)) is None:
            return F.embedding(indices, weight, *options, **named)
        if any(value not in (None, False, 2.0) for value in (*options, *named.values())):
            raise self._unknown(weight, "an embedding that pads, rescales or is sparse")
        self._check_rows(indices, weight)
        return self._apply(fused.Embedding, layer, indices, weight.detach())

    def _apply(self, function: type[torch.autograd.Function], layer: Layer, *arguments: Any) -> Tensor:
        with torch.autocast(arguments[0].device.type, enabled=False):
            found: Tensor = function.apply(*arguments, layer, layer.weight, layer.bias)  # type: ignore[no-untyped-call]
        return found

    def _layer(self, weight: Tensor, bias: Tensor | None) -> Layer | None:
        own, offset = (value if value in self._names else None for value in (weight, bias))
        return None if own is None and offset is None else Layer(self._sink, own, offset)

    def _check_rows(self, x: Tensor, weight: Tensor, *, exact: bool = False) -> None:
        rows = self._sink.patients * self._sink.rows
        if x.dim() == 0 or x.shape[0] % rows or (exact and x.shape[0] != rows):
            raise self._unknown(weight, f"an input of shape {list(x.shape)}, not of {rows} rows in turn")

    def _unknown(self, weight: Tensor, what: str) -> UnknownUseError:
        return UnknownUseError(f"{self._names.get(weight, 'a frozen weight')}: {what}")


class Weights:
    """The model's weights as layers take them: in the precision of autocast, of convolutions with channels last.

    Made once and kept while the weights stay as they are.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[Tensor, torch.dtype], Tensor] = {}

    def cast(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Input, weight and bias of a product, as autocast would have them."""
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        return x.to(dtype), self._of(weight, dtype), None if bias is None else self._of(bias, dtype)

    def _of(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        if (weight, dtype) not in self._kept:
            layout = torch.channels_last if weight.dim() == 4 else torch.preserve_format
            self._kept[weight, dtype] = weight.detach().to(dtype, memory_format=layout)
        return self._kept[weight, dtype]


def _attention(query: Tensor, key: Tensor, value: Tensor, *options: Any, **named: Any) -> Tensor:
    plain = not any((*options, *named.values()))
    brief = query.dtype == torch.bfloat16 and query.device.type == "cpu" and key.shape[-2] <= LONGEST_ATTENTION
    if not (plain and brief and query.dim() == key.dim() == value.dim()):
        found: Tensor = F.scaled_dot_product_attention(query, key, value, *options, **named)
        return found
    with torch.autocast("cpu", enabled=False):
        return fused.Attention.apply(query, key, value)  # type: ignore[no-untyped-call, no-any-return]


def _divided(x: Tensor, by: Any, **named: Any) -> Tensor:
    """Division; by the number one, which diffusers' residual blocks do, it is left out."""
    return x if type(by) is float and by == 1 and x.is_floating_point() and not named else torch.div(x, by, **named)


def _pair(value: Any) -> tuple[int, int]:
    one, other = (value, value) if isinstance(value, int) else (*value, *value)[:2]
    return int(one), int(other)
