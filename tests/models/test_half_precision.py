"""A saved generator loaded in half precision, as people with a GPU do, draws about what it draws in full."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from fedmedgen.composition import compose
from fedmedgen.federation import local_round
from fedmedgen.models.saving import save_generator

WORDS = ("study=demo", "data.size=[16,24]", "generator.width=32", "generator.norm_groups=4", "generator.code=4",
         "generator.channels=[8,8]", "generator.heads=2", "generator.sampler_steps=4", "autoencoder.channels=[8,8]",
         "prior.phantoms=9")  # fmt: skip


@pytest.mark.parametrize("family", ["unet", "dit", "coefficients", "latent", "vae", "gan"])
def test_it_draws_nearly_the_same(family: str, tmp_path: Path) -> None:
    asked = compose([*WORDS, f"generator={family}", "segmenter.rounds=0"])
    model = local_round.build_whole(asked).name_classes(asked.data.classes, asked.data.mask_classes).eval()
    save_generator(model, tmp_path / family, card={})
    drawn = []
    for precision in (torch.float32, torch.bfloat16):
        pipe = DiffusionPipeline.from_pretrained(tmp_path / family, trust_remote_code=True, torch_dtype=precision)
        output = pipe(label=asked.data.classes[0], num_images=2, seed=3)
        drawn.append(np.stack([np.asarray(image, np.float32) for image in output.images]))
    whole, half = drawn
    assert np.abs(whole - half).mean() < 8  # grey levels of 255
