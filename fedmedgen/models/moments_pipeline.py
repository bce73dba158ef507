"""The pipelines saved with generators that draw in one step: they sample where this package isn't installed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from numpy.typing import NDArray
from PIL import Image

BATCH = 256


@dataclass
class RadiographOutput(BaseOutput):  # type: ignore[misc]
    """Sampled radiographs: PIL images, masks ``[N, H, W]`` (or None) and the label of each."""

    images: list[Image.Image]
    masks: NDArray[np.uint8] | None
    labels: list[str]


class MomentsPipeline(DiffusionPipeline):  # type: ignore[misc]
    """Synthetic radiographs of a class, with masks where the generator draws them."""

    def __init__(self, sampler: Any, classes: Any = (), mask_classes: Any = (), size: Any = (64, 64)) -> None:
        super().__init__()
        self.register_modules(sampler=sampler)
        self.register_to_config(classes=list(classes), mask_classes=list(mask_classes), size=list(size))

    @torch.no_grad()
    def __call__(
        self, label: str | Sequence[str] | None = None, num_images: int = 1, seed: int | None = None
    ) -> RadiographOutput:
        """Draw `num_images` of each label (of every class if none is given).

        **Raises** `ValueError` for a label that the generator doesn't know.
        """
        known = list(self.config.classes) or [""]
        wanted = known if label is None else [label] if isinstance(label, str) else list(label)
        if unknown := set(wanted) - set(known):
            raise ValueError(f"label must be of {known}; got {sorted(unknown)}")
        names = [name for name in wanted for _ in range(num_images)]
        generator = torch.Generator()
        generator.seed() if seed is None else generator.manual_seed(seed)
        seeds = torch.randint(2**62, (len(names),), generator=generator).tolist()
        labels = torch.tensor([known.index(name) for name in names])
        drawn = [
            self.sampler.draw(labels[start : start + BATCH], seeds[start : start + BATCH])
            for start in range(0, len(names), BATCH)
        ]
        x = torch.cat(drawn).cpu()
        grey = ((x[:, 0] + 1) * 127.5).round().to(torch.uint8).numpy()
        masks = None
        if x.shape[1] > 1:
            height, winner = x[:, 1:].max(dim=1)
            masks = torch.where(height > 0, winner + 1, 0).to(torch.uint8).numpy()
        return RadiographOutput(images=[Image.fromarray(image, "L") for image in grey], masks=masks, labels=names)


class OneStepPipeline(MomentsPipeline):
    """The same, for a decoder; `reader`, which it was trained against, draws nothing but can score an image."""

    def __init__(
        self, sampler: Any, reader: Any, classes: Any = (), mask_classes: Any = (), size: Any = (64, 64)
    ) -> None:
        super().__init__(sampler, classes, mask_classes, size)
        self.register_modules(reader=reader)
