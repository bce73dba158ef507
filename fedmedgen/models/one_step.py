"""Generators that draw in one step from a code of unit normal numbers: a VAE's decoder, a GAN's generator."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedmedgen.errors import SettingsError
from fedmedgen.models.code_networks import Critic, Decoder, Encoder
from fedmedgen.models.naming import named, numbered
from fedmedgen.settings import GeneratorSettings


@dataclass(frozen=True, kw_only=True)
class OneStepConfig:
    """What such a generator must know beside its weights; saved with it."""

    classes: tuple[str, ...]
    mask_classes: tuple[str, ...]  # background first; empty: images alone
    size: tuple[int, int]


class OneStepGenerator(nn.Module):
    """The decoder that draws, and the network that reads images: an encoder (VAE) or a critic (GAN).

    Of a GAN the critic alone is trained at the sites; the decoder's weights are the server's, and `class_shares`
    ``[K]``: how often it draws each class for the critic to look at.
    """

    def __init__(self, decoder: Decoder, reader: Encoder | Critic, config: OneStepConfig) -> None:
        super().__init__()
        self.decoder = decoder
        self.reader = reader
        self.config = config
        self.decoder.requires_grad_(not self.adversarial)
        if self.adversarial:  # public: of the release, where there is one
            even = torch.full((max(1, self.num_classes),), 1 / max(1, self.num_classes))
            self.class_shares = nn.Parameter(even, requires_grad=False)

    @property
    def adversarial(self) -> bool:
        return isinstance(self.reader, Critic)

    @property
    def num_classes(self) -> int:
        """Also the label that means "no class"."""
        return len(self.config.classes)

    @property
    def num_channels(self) -> int:
        return 1 + max(0, len(self.config.mask_classes) - 1)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def name_classes(self, classes: Sequence[str], mask_classes: Sequence[str] = ()) -> "OneStepGenerator":
        """Say what the numbers of labels and masks mean; returns the generator.

        **Raises** `SettingsError` if their count is not the networks'.
        """
        self.config = named(self.config, classes, mask_classes)
        return self

    def draw(self, labels: Tensor, seeds: Sequence[int]) -> Tensor:
        """Images and mask channels ``[B, C, H, W]`` in [-1, 1]; each depends on its own label and seed alone."""
        drawn: Tensor = self.decoder.draw(labels, seeds)
        return drawn


def build_one_step(
    generator: GeneratorSettings, *, num_classes: int, num_masks: int, size: tuple[int, int], seed: int
) -> OneStepGenerator:
    """A fresh VAE or GAN, by `generator.family`; `num_masks` counts mask classes less the background.

    **Raises** `SettingsError` if the groups of GroupNorm don't divide the width.

    **Guarantee** The weights depend on the seed alone, and torch's global random state is left as it was.
    """
    if generator.width // 2 % generator.norm_groups:
        raise SettingsError(
            f"generator.norm_groups must divide half of generator.width, {generator.width // 2};"
            f" got {generator.norm_groups}"
        )
    classes, masks = numbered(num_classes, num_masks)
    shape: dict[str, Any] = {"channels": 1 + num_masks, "num_class_embeds": num_classes + 1, "size": list(size)}
    shape |= {"width": generator.width, "groups": generator.norm_groups}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        decoder = Decoder(**shape, code=generator.code)
        if generator.family == "gan":
            reader = Critic(**shape)
        else:
            reader = Encoder(**shape, code=generator.code, decoder_std=generator.decoder_std)
    config = OneStepConfig(classes=classes, mask_classes=masks, size=(size[0], size[1]))
    return OneStepGenerator(decoder, reader, config)
