"""A device that isn't the CPU, on the CPU: its tensors hold numbers, and meet none that lie elsewhere.

What a GPU refuses is refused here, as far as `_refuse` goes: a tensor of the CPU among the device's (a single number
or an index may be one), a generator of the CPU for numbers on the device, norms of two types, `numpy()`. Autocast casts
those operators, of all that CUDA's does, which networks here call.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torchgen
from torch import Tensor
from torch._C import DispatchKey, DispatchKeySet, _ExcludeDispatchKeyGuard
from torch.library import Library, fallthrough_kernel
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend
from torchgen.gen import parse_native_yaml
from torchgen.model import DispatchKey as Backend

NAME = "standin"
ATEN = torch.ops.aten
BETWEEN = (ATEN._to_copy, ATEN.copy_)
INDEXED = (ATEN.index, ATEN.index_put, ATEN.index_put_)
JOINED = (ATEN.cat, ATEN.stack)  # of which no single number may lie elsewhere
NORMS = (ATEN.native_layer_norm, ATEN.native_group_norm)
PRODUCTS = {ATEN.convolution, ATEN.mm, ATEN.addmm, ATEN.bmm, ATEN.baddbmm}
SHORT = (ATEN.conv2d, ATEN.linear, ATEN.matmul, ATEN.mm, ATEN.addmm, ATEN.bmm, ATEN.baddbmm,
         ATEN.scaled_dot_product_attention)  # fmt: skip
LONG = (ATEN.group_norm, ATEN.layer_norm, ATEN.mse_loss, ATEN.nll_loss, ATEN.nll_loss_nd, ATEN.softmax,
        ATEN.log_softmax, ATEN.sum, ATEN.exp, ATEN.log, ATEN.pow)  # fmt: skip
ON_CUDA = (Backend.CUDA, Backend.CompositeExplicitAutograd, Backend.CompositeExplicitAutogradNonFunctional,
           Backend.CompositeImplicitAutograd)  # fmt: skip
used: set[torch._ops.OpOverload] = set()


class Elsewhere(torch.Tensor):
    """A tensor of the device; `held` has its numbers, and shares memory as the tensor would."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "Elsewhere":
        made: Elsewhere = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, held.shape, dtype=held.dtype, device=torch.device(NAME, 0), strides=held.stride(),
            storage_offset=held.storage_offset(),
        )  # fmt: skip
        made.held = held
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def __repr__(self, **_: Any) -> str:
        return f"Elsewhere({self.held})"

    def tolist(self) -> Any:
        return self.held.tolist()


class _Device(TorchDispatchMode):
    """Makes on the device what is asked for there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.is_inference_mode_enabled() and func._can_decompose():
            with self:
                return func.decompose(*args, **(kwargs or {}))
        return _run(func, args, kwargs or {})


class _Module:
    """What `torch.cuda` is to a GPU."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        known = {"is_available": True, "is_initialized": True, "device_count": 1, "get_device_name": "a stand-in",
                 "get_amp_supported_dtype": [torch.bfloat16], "_is_in_bad_fork": False, "manual_seed_all": None,
                 "current_device": 0}  # fmt: skip
        if name not in known:
            raise AttributeError(name)
        return lambda *_: known[name]


@contextmanager
def device() -> Iterator[torch.device]:
    """The device, for the rest of the process: torch knows no way to take it back, and wants it before any gradient."""
    _setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
    every, own = Library("_", "IMPL"), Library("aten", "IMPL")
    every.fallback(fallthrough_kernel, "AutocastPrivateUse1")
    for packets, dtype in ((SHORT, torch.bfloat16), (LONG, torch.float32)):
        for packet in packets:
            for overload in map(partial(getattr, packet), packet.overloads()):
                if "out" not in overload._overloadname:
                    own.impl(overload._name, partial(_cast, overload, dtype), "AutocastPrivateUse1")
    torch._C._set_only_lift_cpu_tensors(True)  # type: ignore[attr-defined]  # `torch.tensor` makes them there first
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # a tensor here can't be given another's numbers
    torch.accelerator.synchronize = lambda *_: None
    with _Device():
        yield torch.device(NAME, 0)


def without_cuda(operators: Iterable[Any]) -> list[str]:
    """The names of those for which torch's own table has no kernel on CUDA."""
    return sorted({operator._name.removeprefix("aten::") for operator in operators} - _on_cuda())


@cache
def _on_cuda() -> frozenset[str]:
    folder = Path(torchgen.__file__).parent / "packaged" / "ATen" / "native"
    table = parse_native_yaml(str(folder / "native_functions.yaml"), str(folder / "tags.yaml"))
    kernels = {name for key in ON_CUDA for name in table.backend_indices[key].index}
    functions = [one.func.name for one in table.native_functions if {one.func.name, one.structured_delegate} & kernels]
    return frozenset(map(str, functions))


def computed() -> bool:
    """Whether a product was taken on the device since `used` was emptied."""
    return not PRODUCTS.isdisjoint(operator.overloadpacket for operator in used)


def _refuse(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], tensors: Sequence[Tensor]) -> None:
    """**Raises** `RuntimeError` where CUDA does."""
    packet = func.overloadpacket
    if any(isinstance(value, torch.Generator) for value in (*args, *kwargs.values())):
        raise RuntimeError(f"{func}: expected a generator of {NAME}; got one of cpu")
    if packet in NORMS and len({tensor.dtype for tensor in tensors}) > 1:
        raise RuntimeError(f"{func}: expected one type; got {[tensor.dtype for tensor in tensors]}")
    if packet in BETWEEN:
        return
    if packet in INDEXED:
        tensors = [tensor for tensor in (args[0], *args[2:3]) if isinstance(tensor, Tensor)]
    strict = packet in JOINED or packet in INDEXED
    here = [tensor for tensor in tensors if not isinstance(tensor, Elsewhere) and (tensor.dim() or strict)]
    written = [args[place] for place, own in enumerate(func._schema.arguments[: len(args)]) if own.is_write]
    if here or any(isinstance(one, Tensor) and not isinstance(one, Elsewhere) for one in written):
        raise RuntimeError(f"{func}: expected all tensors to be on the same device; got {NAME} and cpu")


def _cast(overload: Any, dtype: torch.dtype, *args: Any, **kwargs: Any) -> Any:
    def cast(value: Any) -> Any:
        return (
            value.to(dtype) if isinstance(value, Tensor) and value.dtype in (torch.float32, torch.bfloat16) else value
        )

    with _ExcludeDispatchKeyGuard(DispatchKeySet(DispatchKey.AutocastPrivateUse1)):
        return overload(*tree_map(cast, args), **tree_map(cast, kwargs))


def _run(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, Elsewhere)]
    asked = kwargs.get("device")
    wanted = bool(there) if asked is None else torch.device(asked).type == NAME
    if not there and not wanted:
        return func(*args, **kwargs)
    used.add(func)
    _refuse(func, args, kwargs, tensors)
    own = {**kwargs, "device": torch.device("cpu")} if asked is not None else kwargs
    found = func(*tree_map_only(Elsewhere, lambda tensor: tensor.held, args),
                 **tree_map_only(Elsewhere, lambda tensor: tensor.held, own))  # fmt: skip
    if func.overloadpacket is ATEN.copy_:
        return args[0]
    if not wanted:
        return found
    found = tree_map_only(Tensor, Elsewhere, found)
    return return_and_correct_aliasing(func, args, kwargs, found) if there else found
