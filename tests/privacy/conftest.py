"""A small diffusers network with attention, in the shape of the one in use, rows for it, and a plan."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DModel
from torch import Tensor, nn
from torch.nn import functional

from fedmedgen.privacy.budget import Plan
from fedmedgen.privacy.ledger import Ledger, Limit, load_or_create_key
from fedmedgen.privacy.mechanism import StagePlan


class SmallDenoiser(nn.Module):
    """Pixel-unshuffle, UNet2DModel with class embedding and attention at the lowest level, pixel-shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = UNet2DModel(
            sample_size=8,
            in_channels=8,
            out_channels=8,
            layers_per_block=1,
            block_out_channels=(8, 16),
            norm_num_groups=4,
            attention_head_dim=8,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            num_class_embeds=4,
        )

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        scale = (1 + sigma.square()).rsqrt().reshape(-1, 1, 1, 1)
        folded = functional.pixel_unshuffle(x * scale, 2)
        out = self.unet(folded, sigma.log() / 4, class_labels=labels, return_dict=False)[0]
        return functional.pixel_shuffle(out, 2) * scale


def denoising_loss(model: nn.Module, rows: dict[str, Tensor]) -> Tensor:
    sigma = rows["sigma"].reshape(-1, 1, 1, 1)
    denoised = model(rows["x"] + sigma * rows["noise"], rows["sigma"], rows["label"])
    return (denoised - rows["x"]).square().mean(dim=(1, 2, 3))


def random_patients(count: int, seed: int = 0) -> list[dict[str, Tensor]]:
    """Patients of 1, 2, 3, 1, … rows of different sizes, so that the norms of their gradients differ."""
    generator = torch.Generator().manual_seed(seed)
    patients = []
    for index in range(count):
        rows = 1 + index % 3
        shape = (rows, 2, 16, 16)
        patients.append(
            {
                "x": torch.randn(shape, generator=generator) * (1 + index),
                "noise": torch.randn(shape, generator=generator),
                "sigma": torch.rand(rows, generator=generator) + 0.1,
                "label": torch.randint(0, 4, (rows,), generator=generator),
            }
        )
    return patients


@pytest.fixture
def denoiser() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return SmallDenoiser()


@pytest.fixture
def loss() -> Callable[[nn.Module, dict[str, Tensor]], Tensor]:
    return denoising_loss


@pytest.fixture
def patients_of() -> Callable[[int], list[dict[str, Tensor]]]:
    return random_patients


@pytest.fixture
def plan() -> Plan:
    shared = {"sample_rate": 0.05, "noise_multiplier": 1.0, "clip_norm": 1.0, "denominator_patients": 100}
    return Plan(
        (StagePlan(name="generator", steps=40, **shared), StagePlan(name="segmenter", steps=10, **shared)), 1e-5
    )


@pytest.fixture
def open_ledger(tmp_path: Path) -> Callable[[], Ledger]:
    """Each call opens the same files afresh, as a new process would."""

    def opened() -> Ledger:
        key = load_or_create_key(tmp_path / "ledger.key")
        return Ledger(tmp_path / "ledger.jsonl", key=key, head_path=tmp_path / "ledger.head")

    return opened


@pytest.fixture
def filled(open_ledger: Callable[[], Ledger], plan: Plan, tmp_path: Path) -> Path:
    """A ledger of five lines: open, reserve, complete, reserve, open."""
    ledger, limit = open_ledger(), Limit(epsilon=10.0, delta=1e-3)

    def open_plan(run: str, epsilon: float) -> None:
        ledger.open_plan(run, plan.digest, plan.to_mapping(), epsilon=epsilon, delta=1e-5, limit=limit)

    open_plan("run-1", 2.0)
    ledger.reserve("run-1", plan.digest, "generator", 10, "request-1")
    ledger.complete("request-1", "reply")
    ledger.reserve("run-1", plan.digest, "generator", 20, "request-2")
    open_plan("run-2", 3.0)
    return tmp_path / "ledger.jsonl"
