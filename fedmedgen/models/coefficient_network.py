"""A diffusion network in a few public coefficients of an image, saved beside the weights of generators that use it."""

import math

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Two layers whose hidden units are scaled and shifted by the condition."""

    def __init__(self, width: int, embedding: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, width)
        self.condition = nn.Linear(embedding, 2 * width)
        self.down = nn.Linear(width, width)

    def forward(self, hidden: Tensor, condition: Tensor) -> Tensor:
        """**Shapes** hidden ``[B, W]``, condition ``[B, E]`` -> ``[B, W]``."""
        scale, shift = self.condition(condition).chunk(2, dim=1)
        out: Tensor = hidden + self.down(nn.functional.silu(self.up(self.norm(hidden)) * (1 + scale) + shift))
        return out


class CoefficientNetwork(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """A residual network of plain layers that sees, and moves, an image's lowest cosine coefficients alone.

    The basis travels as buffers, a wave along the rows and one along the columns for each coefficient. What goes in and
    what comes out is scaled to about unit variance at every noise level, by the power that radiographs have at each
    frequency; ln sigma is `log_sigma_unit` x timestep.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(  # noqa: PLR0913  (all of a saved network's config, by name)
        self, *, in_channels: int, num_class_embeds: int, coefficients: int, size: tuple[int, int],
        width: int, depth: int, log_sigma_unit: float, sigma_data: float,
    ) -> None:  # fmt: skip
        super().__init__()
        embedding, (height, width_of_image) = width // 4, size
        distance = (torch.arange(height) / height)[:, None] ** 2 + (torch.arange(width_of_image) / width_of_image) ** 2
        power = (distance + 0.03**2) ** -1.5
        chosen = distance.flatten().argsort(stable=True)[:coefficients]
        self.register_buffer("rows", _waves(chosen // width_of_image, height))
        self.register_buffer("columns", _waves(chosen % width_of_image, width_of_image))
        self.register_buffer("power", (power / power.mean()).flatten()[chosen])
        self.time_proj = Timesteps(embedding, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(embedding, embedding)
        self.class_embedding = nn.Embedding(num_class_embeds, embedding)
        self.entry = nn.Linear(in_channels * coefficients, width)
        self.blocks = nn.ModuleList(ResidualBlock(width, embedding) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, in_channels * coefficients)

    def forward(self, x: Tensor, timestep: Tensor, class_labels: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        """**Shapes** x ``[B, C, H, W]`` of the config's size, timestep and class_labels ``[B]`` -> ``[B, C, H, W]``."""
        level = (2 * self.config.log_sigma_unit * timestep).exp()[:, None, None] / self.config.sigma_data**2
        gain = ((1 + level) / (self.power + level)).sqrt()
        z = ((x @ self.columns.T) * self.rows.T).sum(dim=2)
        condition = self.time_embedding(self.time_proj(timestep).to(x)) + self.class_embedding(class_labels)
        hidden = self.entry((gain * z).flatten(1).to(x))
        for block in self.blocks:
            hidden = block(hidden, condition)
        z = gain * self.power.sqrt() * self.head(self.norm(hidden)).unflatten(1, z.shape[1:])
        return ((z[:, :, None].to(x) * self.rows.T) @ self.columns,)


def _waves(frequency: Tensor, size: int) -> Tensor:
    """Rows of the orthonormal cosine transform (DCT-II) ``[n, size]``."""
    angle = frequency[:, None] * (torch.arange(size) + 0.5) * math.pi / size
    return angle.cos() * torch.where(frequency > 0, 2 / size, 1 / size).sqrt()[:, None]
