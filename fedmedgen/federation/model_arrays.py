"""A network's parameters as arrays: those that train and travel, public ones it rests on, a site's personal ones.

A parameter is public if it is frozen, personal if it trains and stands in the model's own list `personal`, else shared.
"""

from collections.abc import Iterator, Mapping
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedmedgen.errors import SettingsError

Arrays = dict[str, NDArray[np.float32]]
Kind = Literal["shared", "public", "personal"]


def arrays_of(model: nn.Module, kind: Kind) -> Arrays:
    """Float32 copies of the parameters of a kind, by name."""
    return {name: value.detach().cpu().numpy().astype(np.float32, copy=True) for name, value in _of(model, kind)}


def shapes_of(model: nn.Module, kind: Kind) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in _of(model, kind)}


def put(model: nn.Module, kind: Kind, arrays: Mapping[str, NDArray[np.float32]]) -> None:
    """Put arrays, by name, into the parameters of a kind."""
    with torch.no_grad():
        for name, parameter in _of(model, kind):
            parameter.copy_(torch.from_numpy(np.array(arrays[name])))


def put_named(model: nn.Module, arrays: Mapping[str, NDArray[np.float32]]) -> None:
    """Put arrays into the parameters of their names, of whatever kind.

    **Raises** `ValueError` where the model has no such parameter, or one of another shape.
    """
    parameters = dict(model.named_parameters())
    odd = [name for name, value in arrays.items() if name not in parameters or parameters[name].shape != value.shape]
    if odd:
        raise ValueError(f"no such parameter: {odd[0]}" if odd[0] not in parameters else f"another shape: {odd[0]}")
    with torch.no_grad():
        for name, value in arrays.items():
            parameters[name].copy_(torch.from_numpy(np.array(value)))


def trainable_arrays(model: nn.Module) -> Arrays:
    """The shared parameters: all that ever leaves a site."""
    return arrays_of(model, "shared")


def public_arrays(model: nn.Module) -> Arrays:
    """The frozen parameters, and what a site's personal ones start from: they travel to sites, never back."""
    return arrays_of(model, "public") | arrays_of(model, "personal")


def public_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return shapes_of(model, "public") | shapes_of(model, "personal")


def load_arrays(model: nn.Module, arrays: Mapping[str, NDArray[np.float32]]) -> None:
    """Put arrays, by name, into the shared parameters."""
    put(model, "shared", arrays)


def load_public(model: nn.Module, arrays: Mapping[str, NDArray[np.float32]]) -> None:
    """Put arrays, by name, into the frozen parameters and the personal ones."""
    put(model, "public", arrays)
    put(model, "personal", arrays)


def personalise(model: nn.Module, network: nn.Module, layers: str) -> None:
    """Write the trainable parameters of the `layers` of a network ("norms", "last-block") into the model's own list.

    **Raises** `SettingsError` where there are none, or nothing else trains.
    """
    if layers == "none":
        return
    chosen = {id(weight) for part in _layers(network, layers) for weight in part.parameters() if weight.requires_grad}
    names = {name: id(value) in chosen for name, value in model.named_parameters() if value.requires_grad}
    if len(set(names.values())) < 2:
        raise SettingsError(f"federation.personal={layers} leaves nothing to keep, or nothing to send, in this network")
    model.personal = frozenset(name for name, own in names.items() if own)  # type: ignore[assignment]


def _layers(network: nn.Module, layers: str) -> list[nn.Module]:
    if layers == "norms":
        kinds = (nn.GroupNorm, nn.LayerNorm)
        return [module for module in network.modules() if isinstance(module, kinds)]
    blocks = getattr(network, "up_blocks", getattr(network, "blocks", []))
    return list(blocks)[-1:]


def _of(model: nn.Module, kind: Kind) -> Iterator[tuple[str, nn.Parameter]]:
    own: frozenset[str] = getattr(model, "personal", frozenset())
    for name, value in model.named_parameters():
        found = "public" if not value.requires_grad else "personal" if name in own else "shared"
        if found == kind:
            yield name, value
