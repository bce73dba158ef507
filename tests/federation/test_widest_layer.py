"""What a policy bounds memory by, held against what the layers of each family really give."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from fedmedgen.composition import compose
from fedmedgen.data.cases import Case
from fedmedgen.federation import local_round, plan

WIDE = ("study=demo", "data.size=[40,56]", "generator.width=64", "generator.norm_groups=4", "generator.code=4",
        "generator.channels=[8,16]", "generator.heads=2", "autoencoder.channels=[8,8]", "prior.phantoms=9",
        "privacy.noise_draws=1", "generator.images_per_patient=1", "segmenter.images_per_patient=1")  # fmt: skip


@pytest.mark.parametrize(
    "words",
    [
        ("generator=unet", "generator.unshuffle=1"), ("generator=dit", "generator.patch=2", "segmenter.rounds=0"),
        ("generator=dit", "generator.patch=8", "generator.unshuffle=1", "segmenter.rounds=0"),
        ("generator=latent",), ("generator=vae",), ("generator=gan",), ("generator=vae", "generator.unshuffle=1"),
    ],
    ids=str,
)  # fmt: skip
def test_the_widest_layer_is_counted_as_it_is_in_every_family_and_stage(words: tuple[str, ...]) -> None:
    """Against what each layer of the networks really gives, found by looking."""
    asked = compose([*WIDE, *words])
    seen: list[int] = []
    for stage in plan.stages(asked):
        if stage.name == plan.STATISTICS:
            continue
        model = local_round.build_model(asked, stage.name)
        for part in model.modules():
            part.register_forward_hook(lambda _part, _given, found: seen.append(_numbers(found)))
        masks = np.zeros(asked.data.size, np.uint8)
        case = Case(np.zeros((1, *asked.data.size), np.float32), "one", 0, masks)
        rows = local_round.draw_rows(asked, stage.name, 1, [case], torch.Generator().manual_seed(0), model)
        local_round.loss_of(asked, stage.name)(model, rows)
    attention = 0
    if asked.generator.family == "dit":
        tokens = math.prod(-(-side // asked.generator.patch) for side in asked.data.size)
        attention = asked.generator.heads * tokens**2
    counted = plan.largest_layer(asked, 1)
    assert max(*seen, attention) <= counted <= 4 * max(*seen, attention)


def _numbers(found: Any) -> int:
    first = found[0] if isinstance(found, tuple) else found
    return int(first.numel()) if isinstance(first, torch.Tensor) else 0
