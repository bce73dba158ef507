"""Samplers and noise schedules as free functions over any `denoise(x, sigma) -> x0`."""

import math
from itertools import pairwise
from typing import Literal

import torch
from diffusers import EDMDPMSolverMultistepScheduler
from torch import Tensor

from fedmedgen.models import pipeline
from fedmedgen.models.denoiser import Denoiser
from fedmedgen.models.pipeline import SIGMA_MAX, SIGMA_MIN, Denoise, heun, karras_sigmas

__all__ = ["Denoise", "dpmpp", "guided", "heun", "karras_sigmas", "sample", "stochastic"]


def guided(denoiser: Denoiser, labels: Tensor, guidance: float) -> Denoise:
    """The denoiser for these labels ``[B]`` under classifier-free guidance (1: none)."""
    return pipeline.guided(denoiser, labels, guidance, denoiser.num_classes)


def stochastic(
    denoise: Denoise, noise: Tensor, sigmas: Tensor, generator: torch.Generator, *, churn: float = 20.0
) -> Tensor:
    """Heun's method with fresh noise added before every step, which repairs earlier mistakes.

    **Source** Karras et al. 2022, algorithm 2, with S_tmin 0.05, S_tmax 50 and S_noise 1.003.
    """
    gamma = min(churn / (len(sigmas) - 1), math.sqrt(2) - 1)
    x = noise * sigmas[0]
    for now, after in pairwise(sigmas):
        raised = now * (1 + gamma) if 0.05 <= now <= 50 else now
        fresh = torch.randn(x.shape, generator=generator).to(x)
        x = x + (raised**2 - now**2).sqrt() * 1.003 * fresh
        x = heun(denoise, x / raised, torch.stack([raised, after]))
    return x


def dpmpp(denoise: Denoise, noise: Tensor, steps: int, *, sigma_data: float = 0.5) -> Tensor:
    """DPM-Solver++(2M) by diffusers: one call of the denoiser a step.

    **Source** Lu et al. 2022, as `EDMDPMSolverMultistepScheduler`.
    """
    scheduler = EDMDPMSolverMultistepScheduler(
        sigma_min=SIGMA_MIN, sigma_max=SIGMA_MAX, sigma_data=sigma_data, solver_order=2, prediction_type="epsilon"
    )
    scheduler.set_timesteps(steps)
    x: Tensor = noise * scheduler.sigmas[0].to(noise)
    for step, timestep in enumerate(scheduler.timesteps):
        sigma = scheduler.sigmas[step].to(noise)
        x = scheduler.step(_network_output(denoise(x, sigma), x, sigma, sigma_data), timestep, x).prev_sample
    return x


def _network_output(clean: Tensor, x: Tensor, sigma: Tensor, sigma_data: float) -> Tensor:
    """What the scheduler's own preconditioning turns back into the denoised image (its "epsilon" form)."""
    c_skip = sigma_data**2 / (sigma**2 + sigma_data**2)
    c_out = sigma * sigma_data / (sigma**2 + sigma_data**2).sqrt()
    return (clean - c_skip * x) / c_out


def sample(
    denoise: Denoise, noise: Tensor, generator: torch.Generator, *,
    sampler: Literal["heun", "stochastic", "dpmpp"], steps: int,
) -> Tensor:  # fmt: skip
    """Samples ``[B, C, H, W]`` from unit noise by the sampler of that name."""
    if sampler == "dpmpp":
        return dpmpp(denoise, noise, steps)
    sigmas = karras_sigmas(steps).to(noise)
    if sampler == "stochastic":
        return stochastic(denoise, noise, sigmas, generator)
    return heun(denoise, noise, sigmas)
