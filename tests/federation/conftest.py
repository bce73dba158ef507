"""What the optimiser of a site's round is given."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook


@pytest.fixture
def gradients() -> Iterator[list[Tensor]]:
    """What Adam takes at each step, all layers in one."""
    taken: list[Tensor] = []

    def note(optimiser: torch.optim.Optimizer, *_: object) -> None:
        values = [value.grad for group in optimiser.param_groups for value in group["params"]]
        taken.append(torch.cat([value.flatten() for value in values if value is not None]).double())

    handle = register_optimizer_step_pre_hook(note)
    yield taken
    handle.remove()
