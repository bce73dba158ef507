"""A small class-conditional diffusion transformer, saved beside the weights of every generator that is one.

Layers are diffusers' own; `DiTTransformer2DModel` itself won't do, since it drops labels by torch's random state where
a private loss must be a function of a patient's rows, and since it knows one image size.
"""

from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import TimestepEmbedding, Timesteps, get_2d_sincos_pos_embed
from diffusers.models.normalization import AdaLayerNormZero
from torch import Tensor, nn


class TransformerBlock(nn.Module):
    """Attention and a two-layer network, each scaled, shifted and gated by the condition (adaLN-zero)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = AdaLayerNormZero(width)
        self.attention = Attention(width, heads=heads, dim_head=width // heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.feed_forward = FeedForward(width, mult=2, activation_fn="gelu-approximate")
        nn.init.zeros_(self.norm1.linear.weight)
        nn.init.zeros_(self.norm1.linear.bias)

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        """**Shapes** tokens ``[B, N, W]``, condition ``[B, W]`` -> ``[B, N, W]``."""
        normed, gate, shift, scale, gate_after = self.norm1(tokens, emb=condition)
        tokens = tokens + gate[:, None] * self.attention(normed)
        normed = self.norm2(tokens) * (1 + scale[:, None]) + shift[:, None]
        out: Tensor = tokens + gate_after[:, None] * self.feed_forward(normed)
        return out


class DiffusionTransformer(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Every pixel of what it is given is a token, so the patch is what was folded into channels before.

    **Source** Peebles and Xie 2023 (DiT), with adaLN-zero, sines for positions and a feed-forward of twice the width.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, in_channels: int, num_class_embeds: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.tokens = nn.Linear(in_channels, width)
        self.time_proj = Timesteps(width, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(width, width)
        self.class_embedding = nn.Embedding(num_class_embeds, width)
        self.blocks = nn.ModuleList(TransformerBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, in_channels)

    def forward(self, x: Tensor, timestep: Tensor, class_labels: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        """**Shapes** x ``[B, C, H, W]``, timestep and class_labels ``[B]`` -> ``[B, C, H, W]``, as `UNet2DModel`."""
        height, width = x.shape[-2:]
        places = get_2d_sincos_pos_embed(self.config.width, (height, width), device=x.device).to(x)
        condition = self.time_embedding(self.time_proj(timestep).to(x)) + self.class_embedding(class_labels)
        tokens = self.tokens(x.flatten(2).transpose(1, 2)) + places
        for block in self.blocks:
            tokens = block(tokens, condition)
        return (self.head(self.norm(tokens)).transpose(1, 2).unflatten(2, (height, width)),)
