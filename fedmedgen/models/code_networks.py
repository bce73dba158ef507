"""Networks between an image and a short code of unit normal numbers, saved beside the weights of a generator.

The decoder draws, of a VAE and of a GAN alike; a VAE's encoder and a GAN's critic read. Layers are diffusers' own, with
GroupNorm alone: no image of a batch knows of another. Sides are halved until the shorter one is about `COARSEST`; any
size goes in, padded, and comes out, cropped.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.nn import functional as F

COARSEST = 4  # pixels, of the shorter side
FOLD = 2  # pixels along a side that become channels at the door: the first halving


class Decoder(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """An image of a class, channels in [-1, 1], from a code; code and class scale and shift every block."""

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self, *, channels: int, num_class_embeds: int, size: Sequence[int], code: int, width: int, groups: int
    ) -> None:
        super().__init__()
        coarse, widths = coarsest(size), _widths(size, width)
        self.class_embedding = nn.Embedding(num_class_embeds, width)
        self.style = nn.Linear(code, width)
        self.start = nn.Linear(code, widths[-1] * math.prod(coarse))
        self.middle = _block(widths[-1], widths[-1], groups, condition=width)
        steps = pairwise(reversed(widths))
        self.blocks = nn.ModuleList(_block(wide, fine, groups, condition=width, up=True) for wide, fine in steps)
        self.norm = nn.GroupNorm(groups, widths[0])
        self.exit = nn.Conv2d(widths[0], channels * FOLD**2, 3, padding=1)

    def forward(self, code: Tensor, labels: Tensor) -> Tensor:
        """**Shapes** code ``[B, code]``, labels ``[B]`` -> ``[B, C, H, W]``; the last label means "no class"."""
        condition = self.class_embedding(labels) + self.style(code)
        hidden = self.middle(self.start(code).unflatten(1, (-1, *coarsest(self.config.size))), condition)
        for block in self.blocks:
            hidden = block(hidden, condition)
        x = F.pixel_shuffle(self.exit(F.silu(self.norm(hidden))), FOLD).tanh()
        height, width = self.config.size
        return x[..., :height, :width]

    @torch.no_grad()
    def draw(self, labels: Tensor, seeds: Sequence[int]) -> Tensor:
        """One image ``[B, C, H, W]`` for each of the labels ``[B]`` and seeds; it depends on its own alone."""
        unit = [torch.randn(self.config.code, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        drawn: Tensor = self(torch.stack(unit).to(self.device, self.dtype), labels.to(self.device))
        return drawn.float()


class Encoder(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Where an image of a class may have come from: the mean and the log variance of each number of its code.

    `decoder_std` is the deviation of a pixel around what the decoder draws.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(  # noqa: PLR0913  (all of a saved network's config, by name)
        self, *, channels: int, num_class_embeds: int, size: Sequence[int],
        code: int, width: int, groups: int, decoder_std: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.class_embedding = nn.Embedding(num_class_embeds, width)
        self.reading = Reading(channels, size, width, groups, condition=width)
        self.head = nn.Linear(self.reading.width * math.prod(coarsest(size)), 2 * code)

    def forward(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """**Shapes** x ``[B, C, H, W]``, labels ``[B]`` -> mean and log variance ``[B, code]``."""
        hidden = self.reading(x, self.class_embedding(labels))
        mean, log_variance = self.head(hidden.flatten(1)).chunk(2, dim=1)
        return mean, log_variance.clamp(-12, 6)


class Critic(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """How much an image looks like a radiograph of its class.

    **Source** Miyato and Koyama 2018 (projection discriminator).
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self, *, channels: int, num_class_embeds: int, size: Sequence[int], width: int, groups: int
    ) -> None:  # fmt: skip
        super().__init__()
        self.reading = Reading(channels, size, width, groups)
        self.class_embedding = nn.Embedding(num_class_embeds, self.reading.width)
        self.head = nn.Linear(self.reading.width, 1)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """**Shapes** x ``[B, C, H, W]``, labels ``[B]`` -> ``[B]``."""
        hidden = self.reading(x).mean(dim=(2, 3))
        score: Tensor = self.head(hidden)[:, 0] + (self.class_embedding(labels) * hidden).mean(dim=1)
        return score


class Reading(nn.Module):
    """From an image to features of its coarsest places ``[B, width, h, w]``."""

    def __init__(
        self, channels: int, size: Sequence[int], width: int, groups: int, condition: int | None = None
    ) -> None:
        super().__init__()
        widths = _widths(size, width)
        self.width, self.size = widths[-1], padded(size)
        self.entry = nn.Conv2d(channels * FOLD**2, widths[0], 3, padding=1)
        steps = pairwise(widths)
        self.blocks = nn.ModuleList(_block(fine, wide, groups, condition=condition, down=True) for fine, wide in steps)
        self.middle = _block(widths[-1], widths[-1], groups, condition=condition)
        self.norm = nn.GroupNorm(groups, widths[-1])

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """**Shapes** x ``[B, C, H, W]``, condition ``[B, E]`` if there is one."""
        below, right = (whole - side for whole, side in zip(self.size, x.shape[-2:], strict=True))
        hidden = self.entry(F.pixel_unshuffle(F.pad(x, (0, right, 0, below), value=-1.0), FOLD))
        for block in self.blocks:
            hidden = block(hidden, condition)
        return F.silu(self.norm(self.middle(hidden, condition)))


def coarsest(size: Sequence[int]) -> tuple[int, int]:
    """Height and width of the coarsest level of images of this size."""
    step = 2 ** _halvings(size)
    return math.ceil(size[0] / step), math.ceil(size[1] / step)


def padded(size: Sequence[int]) -> tuple[int, int]:
    """Height and width that images of this size are padded to."""
    step = 2 ** _halvings(size)
    height, width = coarsest(size)
    return height * step, width * step


def _halvings(size: Sequence[int]) -> int:
    return max(1, round(math.log2(min(size) / COARSEST)))


def _widths(size: Sequence[int], width: int) -> list[int]:
    """Channels of each level, the finest first, which has half as many as the others."""
    levels = _halvings(size)
    return [width // 2] * (levels > 1) + [width] * max(1, levels - 1)


def _block(before: int, after: int, groups: int, *, condition: int | None, **way: bool) -> nn.Module:
    kind = "default" if condition is None else "scale_shift"
    block: nn.Module = ResnetBlock2D(
        in_channels=before, out_channels=after, temb_channels=condition, groups=groups, time_embedding_norm=kind, **way
    )
    return block
