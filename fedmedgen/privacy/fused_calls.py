"""While a network runs, its calls of layers with weights that train become calls of the fused layers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from fedmedgen.errors import PrivacyError
from fedmedgen.privacy import fused_layers as fused
from fedmedgen.privacy import fused_norms as norms
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
        self._lent: list[tuple[Tensor, int]] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        call = CALLS.get(func)  # unbound: a mode that held its own methods would keep a batch's gradients alive
        return func(*args, **(kwargs or {})) if call is None else call(self, *args, **(kwargs or {}))

    def _conv2d(  # noqa: PLR0913  (torch's own arguments)
        self, x: Tensor, weight: Tensor, bias: Tensor | None = None,
        stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1,
    ) -> Tensor:  # fmt: skip
        if (layer := self._layer(weight, bias)) is None:
            return torch.conv2d(x, weight, bias, stride, padding, dilation, groups)
        if x.dim() != 4 or groups != 1 or isinstance(padding, str):
            raise self._unknown(weight, "a convolution of groups, or padded by name")
        self._check_rows(x, weight)
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
        self._check_rows(x, weight)
        return self._apply(norms.GroupNorm, layer, x, weight.detach(), bias.detach(), (num_groups, eps))

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
        return self._apply(norms.LayerNorm, layer, x, weight.detach(), None if bias is None else bias.detach(), eps)

    def _embedding(  # noqa: PLR0913  (torch's own arguments)
        self, indices: Tensor, weight: Tensor, padding_idx: int | None = None, max_norm: float | None = None,
        norm_type: float = 2.0, scale_grad_by_freq: bool = False, sparse: bool = False,
    ) -> Tensor:  # fmt: skip
        if (layer := self._layer(weight, None)) is None:
            return F.embedding(indices, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse)
        if padding_idx is not None or max_norm is not None or scale_grad_by_freq or sparse:
            raise self._unknown(weight, "an embedding that pads, rescales or is sparse")
        self._check_rows(indices, weight)
        return self._apply(fused.Embedding, layer, indices, weight.detach())

    def _apply(self, function: type[torch.autograd.Function], layer: Layer, *arguments: Any) -> Tensor:
        with torch.autocast(arguments[0].device.type, enabled=False), torch._C.DisableTorchFunction():
            found: Tensor = function.apply(*arguments, layer, layer.weight, layer.bias)  # type: ignore[no-untyped-call]
        return found

    def _layer(self, weight: Tensor, bias: Tensor | None) -> Layer | None:
        own, offset = (value if value in self._names else None for value in (weight, bias))
        if own is None and offset is None:
            return None
        for value, known in ((weight, own), (bias, offset)):
            if value is not None and known is None and value.requires_grad:
                raise self._unknown(weight if own is not None else bias, "a partner that is computed from weights")
        return Layer(self._sink, own, offset)

    def _attention(self, query: Tensor, key: Tensor, value: Tensor, *options: Any, **named: Any) -> Tensor:
        plain = not options and all(value is None or value is False or value == 0.0 for value in _settings(named))
        alike = query.dtype == key.dtype == value.dtype and query.shape[:-2] == key.shape[:-2] == value.shape[:-2]
        brief = query.dtype == torch.bfloat16 and query.device.type == "cpu" and key.shape[-2] <= LONGEST_ATTENTION
        if not (plain and alike and brief):
            found: Tensor = F.scaled_dot_product_attention(query, key, value, *options, **named)
            return found
        with torch.autocast("cpu", enabled=False):
            return fused.Attention.apply(query, key, value)  # type: ignore[no-untyped-call, no-any-return]

    def _contiguous(self, x: Tensor, *, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
        """Images lie with channels last here, and stay so: as any tensor that is in order, they are given back."""
        if x.dim() != 4 or memory_format != torch.contiguous_format or x.is_contiguous():
            return x.contiguous(memory_format=memory_format)
        if not x.is_contiguous(memory_format=torch.channels_last):
            return x.contiguous()
        self._lent.append((x, x._version))
        return x

    def _as_strided(self, *_: Any, **__: Any) -> Tensor:
        raise UnknownUseError("`as_strided`, which reads images as they lie")

    def check_lent(self) -> None:
        """**Raises** `UnknownUseError` if an image that was given back by `contiguous` is no longer as it was."""
        lent, self._lent = self._lent, []
        if any(x._version != version for x, version in lent):
            raise UnknownUseError("an image that is changed in place after `contiguous`")

    def _check_rows(self, x: Tensor, weight: Tensor) -> None:
        rows = self._sink.patients * self._sink.rows
        if x.dim() == 0 or x.shape[0] != rows:
            raise self._unknown(weight, f"an input of shape {list(x.shape)}, not of {rows} rows in turn")

    def _unknown(self, weight: Tensor | None, what: str) -> UnknownUseError:
        name = "a frozen weight" if weight is None else self._names.get(weight, "a frozen weight")
        return UnknownUseError(f"{name}: {what}")


CALLS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.conv2d: FusedCalls._conv2d,
    F.linear: FusedCalls._linear,
    F.group_norm: FusedCalls._group_norm,
    F.layer_norm: FusedCalls._layer_norm,
    F.embedding: FusedCalls._embedding,
    F.scaled_dot_product_attention: FusedCalls._attention,
    Tensor.contiguous: FusedCalls._contiguous,
    Tensor.as_strided: FusedCalls._as_strided,
    torch.as_strided: FusedCalls._as_strided,
}


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


def _settings(named: Mapping[str, Any]) -> list[Any]:
    """What isn't plain attention: a mask counts as True, whatever it holds."""
    return [True if isinstance(value, Tensor) else value for value in named.values()]


def _pair(value: Any) -> tuple[int, int]:
    one, other = (value, value) if isinstance(value, int) else (*value, *value)[:2]
    return int(one), int(other)
