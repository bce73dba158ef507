"""The network in public coefficients: its basis, what it may touch, its scales."""

import pytest
import torch

from fedmedgen.errors import SettingsError
from fedmedgen.models.coefficient_network import CoefficientNetwork
from fedmedgen.models.denoiser import Denoiser, build_denoiser
from fedmedgen.models.pipeline import cosines, noise_condition, power
from fedmedgen.settings import GeneratorSettings


def network(size: tuple[int, int] = (12, 20), coefficients: int = 24, sigma_data: float = 0.5) -> CoefficientNetwork:
    torch.manual_seed(0)
    return CoefficientNetwork(
        in_channels=2, num_class_embeds=3, coefficients=coefficients, size=size, width=32, depth=2,
        log_sigma_unit=0.1, sigma_data=sigma_data,
    )  # fmt: skip


def basis(model: CoefficientNetwork) -> torch.Tensor:
    """``[n, H, W]``"""
    return model.rows[:, :, None] * model.columns[:, None, :]


def test_the_basis_is_orthonormal_and_starts_with_the_mean() -> None:
    waves = basis(network()).flatten(1)
    torch.testing.assert_close(waves @ waves.T, torch.eye(24), atol=1e-5, rtol=0)
    torch.testing.assert_close(waves[0], torch.full((240,), 240**-0.5))


def test_the_basis_is_the_lowest_frequencies_of_the_preconditionings_transform() -> None:
    model = network(size=(12, 12), coefficients=3)
    waves = cosines(12)
    wanted = torch.stack([torch.outer(waves[row], waves[column]) for row, column in ((0, 0), (0, 1), (1, 0))])
    torch.testing.assert_close(basis(model), wanted, atol=1e-5, rtol=0)


def test_the_power_of_a_coefficient_is_that_of_the_spectral_preconditioning() -> None:
    model = network(size=(12, 12), coefficients=3)
    expected = power(torch.Size([1, 12, 12]), 1.0, "spectral")[0]
    torch.testing.assert_close(model.power, torch.stack([expected[0, 0], expected[0, 1], expected[1, 0]]))


def test_what_is_outside_the_basis_is_neither_seen_nor_moved() -> None:
    model, x = network(), torch.randn(2, 2, 12, 20)
    waves = basis(model).flatten(1)
    inside = (x.flatten(2) @ waves.T @ waves).unflatten(2, (12, 20))
    arguments = (torch.tensor([-3.0, 5.0]), torch.tensor([0, 1]))
    out = model(x, *arguments)[0]
    torch.testing.assert_close(model(inside, *arguments)[0], out, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close((out.flatten(2) @ waves.T @ waves).unflatten(2, (12, 20)), out, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("level", [0.02, 0.5, 20.0])
def test_coefficients_of_radiographs_reach_the_first_layer_with_about_unit_variance(level: float) -> None:
    model = network(size=(28, 28), coefficients=64)
    generator = torch.Generator().manual_seed(0)
    spectrum = power(torch.Size([2, 28, 28]), 0.5, "spectral")[:1]
    waves = spectrum.sqrt() * torch.randn(2000, 2, 28, 28, generator=generator)
    noisy = cosines(28).T @ (waves + level * torch.randn(waves.shape, generator=generator)) @ cosines(28)
    seen: list[torch.Tensor] = []
    model.entry.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    sigma = torch.full((2000,), level)
    model((0.25 + level**2) ** -0.5 * noisy, noise_condition(sigma), torch.zeros(2000).long())
    torch.testing.assert_close(seen[0].var(dim=0), torch.ones(128), atol=0.3, rtol=0)


def test_more_coefficients_than_pixels_are_refused() -> None:
    settings = GeneratorSettings(family="coefficients", coefficients=144)
    with pytest.raises(SettingsError, match=r"coefficients must be at most the pixels of an image, 64; got 144"):
        build_denoiser(settings, num_classes=2, num_masks=0, size=(8, 8), seed=0)


def test_white_noise_outside_the_basis_is_refused_and_without_an_outside_it_is_not() -> None:
    def build(coefficients: int) -> Denoiser:
        settings = GeneratorSettings(family="coefficients", coefficients=coefficients, preconditioning="edm")
        return build_denoiser(settings, num_classes=2, num_masks=0, size=(8, 8), seed=0)

    with pytest.raises(SettingsError, match=r"white noise for 'edm': set generator\.preconditioning=spectral"):
        build(32)
    assert isinstance(build(64).unet, CoefficientNetwork)
