"""Samplers on a distribution whose perfect denoiser is known: a Gaussian of mean 0.3 and deviation 0.4."""

import pytest
import torch
from torch import Tensor

from fedmedgen.models import samplers
from fedmedgen.models.denoiser import build_denoiser
from fedmedgen.settings import GeneratorSettings

MEAN, DEVIATION = 0.3, 0.4


def perfect(x: Tensor, sigma: Tensor) -> Tensor:
    variance = DEVIATION**2
    return (variance * x + sigma**2 * MEAN) / (variance + sigma**2)


@pytest.mark.parametrize("sampler", ["heun", "stochastic", "dpmpp"])
def test_a_sampler_draws_from_the_distribution_of_a_perfect_denoiser(sampler: str) -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(20_000, 1, 1, 1, generator=generator)
    drawn = samplers.sample(perfect, noise, generator, sampler=sampler, steps=60)  # type: ignore[arg-type]
    assert float(drawn.mean()) == pytest.approx(MEAN, abs=0.015)
    assert float(drawn.std()) == pytest.approx(DEVIATION, abs=0.02)


@pytest.mark.parametrize("sampler", ["heun", "dpmpp"])
def test_a_deterministic_sampler_follows_the_exact_path(sampler: str) -> None:
    noise = torch.linspace(-2, 2, 9).reshape(9, 1, 1, 1)
    drawn = samplers.sample(perfect, noise, torch.Generator(), sampler=sampler, steps=60)  # type: ignore[arg-type]
    exact = MEAN + (80 * noise - MEAN) * DEVIATION / (DEVIATION**2 + 80**2) ** 0.5
    torch.testing.assert_close(drawn, exact, atol=0.02, rtol=0)


def test_noise_levels_fall_from_eighty_to_zero() -> None:
    sigmas = samplers.karras_sigmas(18)
    assert len(sigmas) == 19
    assert float(sigmas[0]) == pytest.approx(80)
    assert float(sigmas[-2]) == pytest.approx(0.002, rel=1e-3)
    assert float(sigmas[-1]) == 0
    assert bool((sigmas.diff() < 0).all())


def test_heun_calls_the_denoiser_twice_a_step_but_the_last() -> None:
    calls = []

    def count(x: Tensor, sigma: Tensor) -> Tensor:
        calls.append(float(sigma))
        return perfect(x, sigma)

    samplers.heun(count, torch.zeros(1, 1, 1, 1), samplers.karras_sigmas(5))
    assert len(calls) == 9


def test_the_stochastic_sampler_repeats_itself_for_the_same_generator_only() -> None:
    noise, sigmas = torch.zeros(4, 1, 1, 1), samplers.karras_sigmas(8)
    first, same, other = (
        samplers.stochastic(perfect, noise, sigmas, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_guidance_of_one_is_the_conditional_denoiser_and_of_zero_the_unconditional() -> None:
    settings = GeneratorSettings(unshuffle=1, channels=(8, 16), attention=(False, False), norm_groups=4)
    model = build_denoiser(settings, num_classes=2, num_masks=0, size=(8, 8), seed=0)
    x, sigma, labels = torch.randn(2, 1, 8, 8), torch.tensor(1.5), torch.tensor([0, 1])
    each = sigma.expand(2)
    conditional, empty = model(x, each, labels), model(x, each, torch.tensor([2, 2]))
    torch.testing.assert_close(samplers.guided(model, labels, 1.0)(x, sigma), conditional)
    torch.testing.assert_close(samplers.guided(model, labels, 0.0)(x, sigma), empty, atol=1e-5, rtol=1e-4)
    doubled = empty + 2 * (conditional - empty)
    torch.testing.assert_close(samplers.guided(model, labels, 2.0)(x, sigma), doubled, atol=1e-5, rtol=1e-4)
