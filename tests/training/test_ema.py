"""The moving average of weights."""

import torch

from fedmedgen.training.ema import ema


def test_the_average_keeps_the_decays_share_of_the_old() -> None:
    mixed = ema({"w": torch.tensor([4.0])}, {"w": torch.tensor([8.0])}, 0.75)
    assert mixed["w"].item() == 5.0
    assert mixed["w"].dtype == torch.float32


def test_a_decay_of_zero_takes_the_new() -> None:
    assert torch.equal(ema({"w": torch.tensor([4.0])}, {"w": torch.tensor([8.0])}, 0.0)["w"], torch.tensor([8.0]))
