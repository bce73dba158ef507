"""Losses by row."""

import math

import pytest
import torch
from torch import Tensor, nn

from fedmedgen.models.denoiser import Denoiser, build_denoiser
from fedmedgen.models.pipeline import coefficients
from fedmedgen.settings import GeneratorSettings
from fedmedgen.training.losses import diffusion_loss, segmentation_loss

TINY = GeneratorSettings(unshuffle=1, channels=(8, 16), attention=(False, True), norm_groups=4)


def denoiser() -> Denoiser:
    return build_denoiser(TINY, num_classes=2, num_masks=1, size=(8, 8), seed=0)


def rows(count: int = 4) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "x": torch.rand((count, 2, 8, 8), generator=generator) * 2 - 1,
        "weight": torch.ones(count, 2, 1, 1),
        "label": torch.arange(count) % 3,
        "sigma": torch.rand(count, generator=generator) + 0.1,
        "noise": torch.randn((count, 2, 8, 8), generator=generator),
    }


def test_the_diffusion_loss_is_the_published_weighted_error() -> None:
    model, given = denoiser(), rows()
    sigma = given["sigma"]
    clean = model(given["x"] + sigma[:, None, None, None] * given["noise"], sigma, given["label"])
    c_out = coefficients(sigma, model.spectrum(clean))[1]
    expected = (c_out**-2 * (clean - given["x"]).square()).mean(dim=(1, 2, 3))
    torch.testing.assert_close(diffusion_loss(model, given), expected)


def test_a_row_loses_the_same_alone_as_in_a_batch() -> None:
    model, given = denoiser(), rows()
    together = diffusion_loss(model, given)
    alone = torch.cat([diffusion_loss(model, {name: v[i : i + 1] for name, v in given.items()}) for i in range(4)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_a_channel_of_weight_zero_has_no_part_in_the_loss() -> None:
    model, given = denoiser(), rows()
    given["weight"][:, 1] = 0
    torch.autograd.backward(diffusion_loss(model, given).sum())
    gradient = model.unet.conv_out.weight.grad
    assert gradient is not None
    assert gradient[0].any()
    assert not gradient[1].any()


def test_the_diffusion_loss_refuses_another_model_in_words() -> None:
    with pytest.raises(TypeError, match="needs a Denoiser; got Linear"):
        diffusion_loss(nn.Linear(1, 1), rows())


def segmentation(logits: Tensor, mask: Tensor, **weights: float) -> Tensor:
    class Fixed(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return logits

    return segmentation_loss(Fixed(), {"image": torch.zeros(len(mask), 1, 4, 4), "mask": mask}, **weights)


def test_a_sure_and_right_segmentation_loses_nothing_and_a_wrong_one_much() -> None:
    mask = torch.zeros(2, 4, 4, dtype=torch.long)
    mask[:, :2] = 1
    sure = (nn.functional.one_hot(mask, 2).movedim(-1, 1) * 40.0) - 20
    right = segmentation(sure, mask)
    wrong = segmentation(-sure, mask)
    assert float(right.max()) < 1e-4
    assert float(wrong.min()) > 20


def test_an_unsure_segmentation_loses_ln_2_and_the_dice_of_one_half() -> None:
    mask = torch.zeros(1, 4, 4, dtype=torch.long)
    mask[:, :2] = 1
    dice = (2 * 4 + 1) / (8 + 8 + 1)
    assert float(segmentation(torch.zeros(1, 2, 4, 4), mask)) == pytest.approx(math.log(2) + 1 - dice, abs=1e-5)


def test_a_case_without_the_foreground_is_right_when_none_is_found() -> None:
    empty = torch.zeros(1, 4, 4, dtype=torch.long)
    logits = torch.stack([torch.full((1, 4, 4), 30.0), torch.full((1, 4, 4), -30.0)], dim=1)
    assert float(segmentation(logits, empty)) < 1e-4


def test_foreground_pixels_weigh_more_in_the_entropy_alone_and_row_by_row() -> None:
    mask = torch.zeros(2, 4, 4, dtype=torch.long)
    mask[0, 0] = 1
    logits = torch.randn((2, 2, 4, 4), generator=torch.Generator().manual_seed(0))
    once, five = segmentation(logits, mask), segmentation(logits, mask, foreground_weight=5.0)
    entropy = nn.functional.cross_entropy(logits, mask, reduction="none")
    torch.testing.assert_close(five[0] - once[0], 4 * entropy[0, 0].sum() / 16)
    assert five[1] == once[1]
    assert five[0] == segmentation(logits[:1], mask[:1], foreground_weight=5.0)[0]


def test_without_the_dice_the_entropy_is_all() -> None:
    mask = torch.ones(2, 4, 4, dtype=torch.long)
    found = segmentation(torch.zeros(2, 2, 4, 4), mask, dice_weight=0.0)
    torch.testing.assert_close(found, torch.full((2,), math.log(2)))
