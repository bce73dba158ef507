"""The denoiser: preconditioning, sizes, labels, seeds."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from fedmedgen.data import phantoms
from fedmedgen.errors import SettingsError
from fedmedgen.models.denoiser import Denoiser, build_denoiser
from fedmedgen.models.pipeline import coefficients, cosines, noise_condition, power
from fedmedgen.settings import GeneratorSettings

TINY = GeneratorSettings(unshuffle=1, channels=(8, 16), attention=(False, True), norm_groups=4)


def tiny(size: tuple[int, int] = (16, 16), masks: int = 1, unshuffle: int = 1, seed: int = 0) -> Denoiser:
    settings = dataclasses.replace(TINY, unshuffle=unshuffle)
    return build_denoiser(settings, num_classes=3, num_masks=masks, size=size, seed=seed)


@pytest.mark.parametrize(
    ("size", "unshuffle"), [((28, 28), 1), ((64, 64), 2), ((64, 128), 2), ((30, 37), 4), ((9, 8), 1)]
)
def test_a_denoised_image_has_the_size_of_the_noisy_one(size: tuple[int, int], unshuffle: int) -> None:
    x = torch.randn(2, 2, *size)
    out = tiny(size, unshuffle=unshuffle)(x, torch.tensor([0.1, 20.0]), torch.tensor([0, 3]))
    assert out.shape == x.shape
    assert bool(out.isfinite().all())


def test_with_next_to_no_noise_the_image_is_left_alone() -> None:
    x = torch.randn(2, 2, 16, 16)
    out = tiny()(x, torch.full((2,), 1e-4), torch.tensor([0, 1]))
    torch.testing.assert_close(out, x, atol=1e-3, rtol=0)


def test_with_equal_power_at_all_frequencies_the_coefficients_are_edms() -> None:
    sigma = torch.tensor([0.002, 0.1, 0.5, 3.0, 80.0], dtype=torch.float64)
    c_skip, c_out, c_in = coefficients(sigma, power(torch.Size([1, 4, 4]), 0.5, "edm").double())
    total = sigma**2 + 0.25
    torch.testing.assert_close(c_skip[:, 0, 1, 2], 0.25 / total)
    torch.testing.assert_close(c_out.flatten(), sigma * 0.5 / total.sqrt())
    torch.testing.assert_close(c_in.flatten(), total.rsqrt())


def test_what_the_network_must_add_has_unit_variance_on_data_of_the_expected_power() -> None:
    shape = torch.Size([2000, 2, 8, 8])
    generator = torch.Generator().manual_seed(0)
    spectrum = power(shape, 0.5, "spectral")
    waves = spectrum.sqrt() * torch.randn(shape, generator=generator)
    for level in (0.05, 0.5, 5.0):
        c_skip, c_out, c_in = coefficients(torch.tensor([level]), spectrum)
        noisy = waves + level * torch.randn(shape, generator=generator)
        target = (waves - c_skip * noisy) / c_out
        torch.testing.assert_close(target.square().mean(dim=(0, 2, 3)), torch.ones(2), atol=0.05, rtol=0)
        torch.testing.assert_close((c_in * noisy).square().mean(dim=(0, 2, 3)), torch.ones(2), atol=0.05, rtol=0)


def test_the_expected_power_is_that_of_phantoms_within_a_factor_of_four() -> None:
    images = torch.from_numpy(np.stack([case.image for case in phantoms.draw("chest", 100, size=(64, 64), seed=0)]))
    waves = cosines(64) @ images @ cosines(64).T
    found, expected = waves.square().mean(dim=0)[0], power(images.shape, 0.5, "spectral")[0]
    rows = torch.arange(64) / 64
    distance = (rows[:, None] ** 2 + rows**2).sqrt()
    for low, high in ((0.05, 0.1), (0.1, 0.2), (0.2, 0.4), (0.4, 0.8), (0.8, 1.5)):
        ring = (distance >= low) & (distance < high)
        assert 0.25 < float(found[ring].mean() / expected[ring].mean()) < 4


def test_the_cosine_transform_keeps_lengths_and_is_undone_by_its_transpose() -> None:
    for size in (1, 2, 7, 28):
        torch.testing.assert_close(cosines(size) @ cosines(size).T, torch.eye(size), atol=1e-5, rtol=0)
    assert cosines(7)[1:].sum(dim=1).abs().max() < 1e-5


def test_neighbouring_noise_levels_are_told_apart_but_alike() -> None:
    unet = tiny().unet
    levels = torch.tensor([0.3, 0.33, 3.0])
    near, nearby, far = unet.time_proj(noise_condition(levels))
    assert torch.dist(near, nearby) > 0.05
    assert torch.dist(near, nearby) < torch.dist(near, far)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    first, same, other = (list(tiny(seed=seed).parameters()) for seed in (4, 4, 5))
    assert all(torch.equal(a, b) for a, b in zip(first, same, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_building_leaves_the_global_random_state_as_it_was() -> None:
    before = torch.random.get_rng_state()
    tiny()
    assert torch.equal(before, torch.random.get_rng_state())


def test_every_layer_with_weights_is_of_a_kind_whose_per_patient_gradients_are_known() -> None:
    kinds = {type(module) for module in tiny().modules() if list(module.parameters(recurse=False))}
    assert kinds <= {nn.Conv2d, nn.Linear, nn.GroupNorm, nn.Embedding}


def test_every_parameter_but_the_key_bias_gets_a_gradient() -> None:
    model = tiny()
    out = model(torch.randn(3, 2, 16, 16), torch.tensor([0.1, 1.0, 5.0]), torch.tensor([0, 1, 3]))
    torch.autograd.backward(out.square().mean())
    still = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert all(name.endswith("to_k.bias") for name in still)


def test_the_label_changes_the_result() -> None:
    model, x, sigma = tiny(), torch.randn(1, 2, 16, 16), torch.tensor([1.0])
    assert not torch.equal(model(x, sigma, torch.tensor([0])), model(x, sigma, torch.tensor([3])))


def test_a_generator_without_classes_has_only_the_unconditional_label() -> None:
    model = build_denoiser(TINY, num_classes=0, num_masks=0, size=(16, 16), seed=0)
    assert model(torch.randn(2, 1, 16, 16), torch.ones(2), torch.zeros(2, dtype=torch.long)).shape == (2, 1, 16, 16)
    assert model.num_classes == 0


def test_groups_that_do_not_divide_the_channels_are_refused_by_name() -> None:
    settings = dataclasses.replace(TINY, norm_groups=5)
    with pytest.raises(SettingsError, match=r"norm_groups must divide every number of generator.channels"):
        build_denoiser(settings, num_classes=2, num_masks=0, size=(16, 16), seed=0)


def test_names_must_fit_the_network() -> None:
    model = tiny()
    assert model.name_classes(["a", "b", "c"], ["background", "lung"]).config.mask_classes == ("background", "lung")
    with pytest.raises(SettingsError, match="3 classes and 2 mask classes"):
        model.name_classes(["a", "b"], ["background", "lung"])
