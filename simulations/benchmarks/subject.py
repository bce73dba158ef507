"""What is measured: a UNet of 1.74 million parameters at 32 x 32, a transformer of as many, and rows for them."""

import math

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn
from torch.nn import functional as F

from fedmedgen.models.diffusion_transformer import DiffusionTransformer
from fedmedgen.privacy.per_patient import Rows
from simulations.benchmarks.timing import device

SIZE = 32
CHANNELS, QUICK_CHANNELS = (32, 64, 96), (8, 8, 8)


def network(*, quick: bool = False) -> UNet2DModel:
    """Random weights, none zero; the same every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = UNet2DModel(
            sample_size=SIZE,
            in_channels=1,
            out_channels=1,
            layers_per_block=1,
            block_out_channels=QUICK_CHANNELS if quick else CHANNELS,
            norm_num_groups=4 if quick else 16,
            attention_head_dim=8 if quick else 32,
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        )
        _draw_weights(model)
    return model.to(device())


class Transformer(nn.Module):
    """The diffusion transformer on patches of 4 x 4, without classes, called as the UNet is."""

    def __init__(self, *, quick: bool = False) -> None:
        super().__init__()
        width, depth = (32, 1) if quick else (128, 7)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.inner = DiffusionTransformer(16, 1, width, depth, heads=4)
            _draw_weights(self.inner)
        self.to(device())

    def forward(self, x: Tensor, timestep: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        (out,) = self.inner(F.pixel_unshuffle(x, 4), timestep, torch.zeros_like(timestep, dtype=torch.long))
        return (F.pixel_shuffle(out, 4),)


def _draw_weights(model: nn.Module) -> None:
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=1 / math.sqrt(parameter[0].numel()))


def loss(model: nn.Module, rows: dict[str, Tensor]) -> Tensor:
    """Squared error of the predicted noise, by row."""
    out: Tensor = model(rows["x"], rows["timestep"], return_dict=False)[0]
    return (out - rows["noise"]).square().mean(dim=(1, 2, 3))


def patients(count: int, draws: int) -> list[Rows]:
    """Patients of `draws` rows of noise each, brighter and brighter, so that some are clipped and some are not."""
    generator = torch.Generator().manual_seed(0)

    def normal() -> Tensor:
        return torch.randn(draws, 1, SIZE, SIZE, generator=generator).to(device())

    return [
        {
            "x": normal() * (0.5 + index / count),
            "noise": normal() * (0.5 + index / count),
            "timestep": 1000 * torch.rand(draws, generator=generator).to(device()),
        }
        for index in range(count)
    ]
