"""Varied radiographs: the mask moves with its image, each case by draws of its own, the same for the same seed."""

from itertools import pairwise

import numpy as np
import torch

from fedmedgen.data.cases import Case
from fedmedgen.training.variation import ANGLE, SCALE, SHIFT, varied, varied_cases


def discs(count: int = 6, height: int = 48, width: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """A bright disc off the middle, and its mask."""
    down, across = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    disc = ((down - 20) ** 2 + (across - 26) ** 2 < 100).float()
    return (disc * 1.6 - 0.8).expand(count, 1, height, width), disc.to(torch.uint8).expand(count, height, width)


def drawn(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    return varied(*discs(), torch.Generator().manual_seed(seed))


def test_the_mask_moves_with_its_image() -> None:
    images, masks = drawn()
    for image, mask in zip(images[:, 0], masks.bool(), strict=True):
        middle = (image[mask].mean() + image[~mask].mean()) / 2
        assert ((image > middle) == mask).float().mean() > 0.98


def test_every_case_is_moved_by_draws_of_its_own_and_none_too_far() -> None:
    _, masks = drawn()
    before = discs()[1][0]
    assert all(not torch.equal(one, other) for one, other in pairwise(masks))
    middle = torch.stack([torch.nonzero(mask).float().mean(0) for mask in masks])
    start = torch.nonzero(before).float().mean(0)
    reach = SHIFT * 64 + (2 * 3.1416 * ANGLE / 360 + SCALE) * 32 + 2
    assert float((middle - start).norm(dim=1).max()) < 1.5 * reach
    areas = masks.flatten(1).sum(1) / before.sum()
    assert float(areas.min()) > 0.7
    assert float(areas.max()) < 1.4


def test_values_stay_what_they_may_be() -> None:
    images, masks = drawn()
    assert images.abs().max() <= 1
    assert set(masks.unique().tolist()) == {0, 1}
    assert masks.dtype == torch.long


def test_the_same_draws_give_the_same_rows() -> None:
    assert torch.equal(drawn(3)[0], drawn(3)[0])
    assert not torch.equal(drawn(3)[0], drawn(4)[0])


def test_cases_are_varied_with_their_masks_and_keep_all_else() -> None:
    images, masks = discs()
    known = [
        Case(image=image, name=f"{number}", label=1, patient=f"p{number}", site="s", mask=mask if number else None)
        for number, (image, mask) in enumerate(zip(images.numpy(), masks.numpy().astype(np.uint8), strict=True))
    ]
    found = varied_cases(known, seed=3)
    moved, names = varied(images, masks, torch.Generator().manual_seed(3))
    assert [(case.name, case.label, case.patient, case.site) for case in found] == [
        (case.name, case.label, case.patient, case.site) for case in known
    ]
    assert found[0].mask is None
    assert all(np.array_equal(case.image, image) for case, image in zip(found, moved.numpy(), strict=True))
    assert all(np.array_equal(case.mask, mask) for case, mask in zip(found[1:], names[1:].numpy(), strict=True))
    assert varied_cases([], seed=3) == []
