"""Rows: encoding there and back, randomness, weights of unknown masks."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedmedgen.data.cases import Case
from fedmedgen.settings import GeneratorSettings
from fedmedgen.training.rows import choose, decode, diffusion_rows, encode, segmentation_rows

MASKS = ("background", "lung", "lesion")
SETTINGS = GeneratorSettings(label_dropout=0.0)


def cases(count: int = 3, masked: Sequence[int] = (0, 1, 2), label: int | None = 1) -> list[Case]:
    random = np.random.default_rng(0)
    return [
        Case(
            image=(random.integers(0, 256, (1, 8, 10)) / 127.5 - 1).astype(np.float32),
            name=f"{number}.png",
            label=label,
            mask=random.integers(0, 3, (8, 10)).astype(np.uint8) if number in masked else None,
        )
        for number in range(count)
    ]


def draw(members: Sequence[Case], draws: int = 1, seed: int = 0, settings: GeneratorSettings = SETTINGS):
    return diffusion_rows(members, draws, torch.Generator().manual_seed(seed), settings, 4, MASKS)


@given(st.integers(0, 2**32 - 1))
def test_decoding_an_encoded_case_gives_it_back(seed: int) -> None:
    random = np.random.default_rng(seed)
    image = (random.integers(0, 256, (1, 4, 6)) / 127.5 - 1).astype(np.float32)
    case = Case(image, "x", mask=random.integers(0, 3, (4, 6)).astype(np.uint8))
    images, masks = decode(encode([case], MASKS), MASKS)
    np.testing.assert_allclose(images[0], image, atol=1e-6)
    assert masks is not None
    np.testing.assert_array_equal(masks[0], case.mask)


def test_without_mask_classes_the_image_is_the_only_channel() -> None:
    x = encode(cases())
    assert x.shape == (3, 1, 8, 10)
    assert decode(x)[1] is None


def test_a_case_has_one_row_for_each_draw_with_noise_of_its_own() -> None:
    rows = draw(cases(), draws=4)
    assert {len(value) for value in rows.values()} == {12}
    assert torch.equal(rows["x"][0], rows["x"][3])
    assert not torch.equal(rows["noise"][0], rows["noise"][3])
    assert rows["sigma"].unique().numel() == 12


def test_noise_levels_are_log_normal_as_the_settings_say() -> None:
    levels = draw(cases() * 1000, draws=2)["sigma"].log()
    assert float(levels.mean()) == pytest.approx(SETTINGS.noise_mean, abs=0.06)
    assert float(levels.std()) == pytest.approx(SETTINGS.noise_std, abs=0.05)


def test_mask_channels_of_a_case_without_a_mask_weigh_nothing() -> None:
    weight = draw(cases(masked=[1]), draws=2)["weight"]
    assert weight.shape == (6, 3, 1, 1)
    assert weight[:, :, 0, 0].tolist() == [[1, 0, 0]] * 2 + [[1, 1, 1]] * 2 + [[1, 0, 0]] * 2


def test_a_generator_of_images_alone_gets_no_mask_channels() -> None:
    assert draw(cases(), settings=dataclasses.replace(SETTINGS, with_masks=False))["x"].shape[1] == 1


def test_a_case_without_a_label_is_unconditional() -> None:
    assert draw(cases(label=None))["label"].tolist() == [4, 4, 4]


def test_the_share_of_dropped_labels_is_the_settings_share() -> None:
    rows = draw(cases() * 1000, settings=dataclasses.replace(SETTINGS, label_dropout=0.2))
    assert float((rows["label"] == 4).float().mean()) == pytest.approx(0.2, abs=0.03)
    assert set(rows["label"].tolist()) == {1, 4}


def test_about_half_of_the_rows_are_mirrored_with_their_masks_if_asked() -> None:
    members = cases(1)
    plain = encode(members, MASKS)[0]
    x = draw(members, draws=200, settings=dataclasses.replace(SETTINGS, flip=True))["x"]
    straight = torch.tensor([torch.equal(row, plain) for row in x])
    assert all(torch.equal(row, plain.flip(-1)) for row in x[~straight])
    assert 70 < int(straight.sum()) < 130


def test_rows_repeat_for_the_same_seed_and_leave_the_global_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    first, same, other = draw(cases(), seed=1), draw(cases(), seed=1), draw(cases(), seed=2)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["noise"], other["noise"])
    assert torch.equal(before, torch.random.get_rng_state())


def test_choosing_takes_at_most_so_many_and_none_twice() -> None:
    generator = torch.Generator().manual_seed(0)
    members = cases(9)
    chosen = choose(members, 4, generator)
    assert len({case.name for case in chosen}) == 4
    assert choose(members, 20, generator) == members


def test_segmentation_rows_leave_out_cases_without_a_mask_and_only_shade_the_image() -> None:
    members = cases(masked=[0, 2])
    rows = segmentation_rows(members, torch.Generator().manual_seed(0))
    assert rows["image"].shape == (2, 1, 8, 10)
    assert members[2].mask is not None
    np.testing.assert_array_equal(rows["mask"][1].numpy(), members[2].mask)
    assert float((rows["image"][0] - torch.from_numpy(members[0].image)).abs().max()) <= 0.21


def test_with_a_slope_a_mask_is_the_distance_to_its_edge_and_decodes_to_itself() -> None:
    bar = np.zeros((8, 8), np.uint8)
    bar[:, 3:] = 1
    case = Case(np.zeros((1, 8, 8), np.float32), name="bar", patient="p", site="s", mask=bar)
    channel = encode([case], MASKS[:2], slope=4)[0, 1]
    assert channel[0].tolist() == [-0.625, -0.375, -0.125, 0.125, 0.375, 0.625, 0.875, 1.0]
    for members in (cases(3), [case]):
        _, masks = decode(encode(members, MASKS, slope=4), MASKS)
        assert masks is not None
        assert all((mask == own.mask).all() for mask, own in zip(masks, members, strict=True))


@pytest.mark.parametrize("value", [0, 1])
def test_a_mask_without_an_edge_stays_a_plane(value: int) -> None:
    case = Case(np.zeros((1, 8, 8), np.float32), name="c", patient="p", site="s", mask=np.full((8, 8), value, np.uint8))
    assert (encode([case], MASKS[:2], slope=4)[0, 1] == 2 * value - 1).all()


def test_an_average_of_slopes_has_one_edge_half_way_where_one_of_steps_is_undecided_between() -> None:
    masks = [np.tile(np.arange(16, dtype=np.int64) >= start, (8, 1)).astype(np.uint8) for start in (4, 8)]
    halves = [Case(np.zeros((1, 8, 16), np.float32), name="h", patient="p", site="s", mask=mask) for mask in masks]
    steps, slopes = (encode(halves, MASKS[:2], slope=slope)[:, 1].mean(dim=0)[0] for slope in (0, 8))
    assert (steps == 0).nonzero()[:, 0].tolist() == [4, 5, 6, 7]
    assert (slopes > 0).nonzero()[:, 0].tolist() == list(range(6, 16))
