"""A network's parameters as arrays: those that train, and the public ones that it only rests on."""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

Arrays = dict[str, NDArray[np.float32]]


def trainable_arrays(model: nn.Module) -> Arrays:
    """Float32 copies of the trainable parameters by name: all that ever leaves a site."""
    return {name: _copied(parameter) for name, parameter in _of(model, trained=True)}


def public_arrays(model: nn.Module) -> Arrays:
    """Float32 copies of the frozen parameters by name: they travel from the server to sites, never back."""
    return {name: _copied(parameter) for name, parameter in _of(model, trained=False)}


def load_arrays(model: nn.Module, arrays: Mapping[str, NDArray[np.float32]]) -> None:
    """Put arrays, by name, into the trainable parameters of a model."""
    _load(_of(model, trained=True), arrays)


def load_public(model: nn.Module, arrays: Mapping[str, NDArray[np.float32]]) -> None:
    """Put arrays, by name, into the frozen parameters of a model."""
    _load(_of(model, trained=False), arrays)


def _of(model: nn.Module, *, trained: bool) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, value) for name, value in model.named_parameters() if value.requires_grad == trained)


def _copied(parameter: nn.Parameter) -> NDArray[np.float32]:
    return parameter.detach().cpu().numpy().astype(np.float32, copy=True)


def _load(parameters: Iterator[tuple[str, nn.Parameter]], arrays: Mapping[str, NDArray[np.float32]]) -> None:
    with torch.no_grad():
        for name, parameter in parameters:
            parameter.copy_(torch.from_numpy(np.array(arrays[name])))
