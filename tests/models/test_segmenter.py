"""The segmenter: the denoiser's weights under a new head."""

import pytest
import torch

from fedmedgen.models.denoiser import build_denoiser
from fedmedgen.models.segmenter import from_denoiser
from fedmedgen.settings import GeneratorSettings

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
