"""A small diffusers network with attention, in the shape of the one in use, and rows for it."""

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn
from torch.nn import functional


class SmallDenoiser(nn.Module):
    """Pixel-unshuffle, UNet2DModel with class embedding and attention at the lowest level, pixel-shuffle."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
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
        folded = functional.pixel_unshuffle(x, 2)
        scale = (1 + sigma.square()).rsqrt().reshape(-1, 1, 1, 1)
        out = self.unet(folded * scale, sigma.log() / 4, class_labels=labels, return_dict=False)[0]
        return functional.pixel_shuffle(out, 2) * scale


def denoising_loss(model: nn.Module, rows: dict[str, Tensor]) -> Tensor:
    sigma = rows["sigma"].reshape(-1, 1, 1, 1)
    denoised = model(rows["x"] + sigma * rows["noise"], rows["sigma"], rows["label"])
    return (denoised - rows["x"]).square().mean(dim=(1, 2, 3))


def random_patients(count: int, *, seed: int = 0) -> list[dict[str, Tensor]]:
    """Patients with 1, 2, 3, … rows of very different sizes, so that their gradients' norms differ."""
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
