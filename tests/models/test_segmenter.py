"""The segmenter: the denoiser's weights under a new head."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedmedgen.data.cases import Case
from fedmedgen.models.denoiser import build_denoiser
from fedmedgen.models.segmenter import from_denoiser
from fedmedgen.settings import GeneratorSettings
from fedmedgen.training.rows import segmentation_rows

TINY = GeneratorSettings(unshuffle=2, channels=(8, 16), attention=(False, True), norm_groups=4)


@pytest.mark.parametrize(("masks", "classes"), [(0, 2), (1, 2), (2, 3)])
def test_a_segmenter_gives_logits_of_each_mask_class_at_the_size_of_the_image(masks: int, classes: int) -> None:
    denoiser = build_denoiser(TINY, num_classes=2, num_masks=masks, size=(28, 30), seed=0)
    segmenter = from_denoiser(denoiser, classes, 0.1, 0)
    assert segmenter(torch.randn(2, 1, 28, 30)).shape == (2, classes, 28, 30)
    assert len(segmenter.config.mask_classes) == classes


def test_all_weights_but_the_head_are_copies_of_the_denoisers() -> None:
    denoiser = build_denoiser(TINY, num_classes=2, num_masks=1, size=(16, 16), seed=0)
    segmenter = from_denoiser(denoiser, 2, 0.1, 0)
    theirs, ours = denoiser.state_dict(), segmenter.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs if "conv_out" not in name)
    with torch.no_grad():
        segmenter.unet.conv_in.weight.zero_()
    assert denoiser.unet.conv_in.weight.any()


def test_the_head_depends_on_the_seed_alone() -> None:
    denoiser = build_denoiser(TINY, num_classes=2, num_masks=1, size=(16, 16), seed=0)
    heads = []
    for seed in (3, 3, 4):
        torch.manual_seed(len(heads))
        heads.append(from_denoiser(denoiser, 2, 0.1, seed).unet.conv_out.weight)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_a_denoiser_without_classes_makes_a_segmenter_too() -> None:
    denoiser = build_denoiser(TINY, num_classes=0, num_masks=1, size=(16, 16), seed=0)
    segmenter = from_denoiser(denoiser, 2, 0.1, 0).name_classes(("background", "caries"))
    assert segmenter(torch.zeros(1, 1, 16, 16)).shape == (1, 2, 16, 16)
    assert segmenter.config.mask_classes == ("background", "caries")


def test_no_mask_reaches_the_network_though_the_denoiser_drew_masks() -> None:
    denoiser = build_denoiser(TINY, num_classes=2, num_masks=1, size=(16, 16), seed=0)
    segmenter = from_denoiser(denoiser, num_mask_classes=2, noise_level=0.1, seed=0).eval()
    seen: list[torch.Tensor] = []
    segmenter.unet.conv_in.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    draw = np.random.default_rng(0)
    cases = [
        Case(image=draw.uniform(-1, 1, (1, 16, 16)).astype(np.float32), name=str(number),
             mask=draw.integers(0, 2, (16, 16)).astype(np.uint8))
        for number in range(4)
    ]  # fmt: skip
    permuted = [replace(case, mask=cases[number - 1].mask) for number, case in enumerate(cases)]
    own, others = (segmentation_rows(rows, torch.Generator().manual_seed(0), warp=True) for rows in (cases, permuted))
    with torch.no_grad():
        assert torch.equal(segmenter(own["image"]), segmenter(others["image"]))
    assert not torch.equal(own["mask"], others["mask"])
    assert torch.count_nonzero(torch.nn.functional.pixel_shuffle(seen[0], 2)[:, 1:]) == 0
