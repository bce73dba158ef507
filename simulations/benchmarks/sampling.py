"""Drawing images: how many a second, by diffusers' own pipeline and by a lean copy, and how near to many more steps."""

from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from scipy.linalg import sqrtm
from torch import Tensor, nn

from fedmedgen.data import phantoms
from fedmedgen.data.cases import FloatArray
from fedmedgen.models import samplers
from fedmedgen.models.denoiser import Denoiser, DenoiserConfig
from fedmedgen.models.features import extract
from fedmedgen.models.lean import lean
from fedmedgen.settings import GeneratorSettings
from fedmedgen.training.fit import Schedule, fit_ordinary
from fedmedgen.training.losses import diffusion_loss
from fedmedgen.training.rows import choose, diffusion_rows
from simulations.benchmarks.subject import SIZE, network
from simulations.benchmarks.timing import device, in_turn, machine, one_thread, ratio

CALLS, REFERENCE_CALLS = (10, 20, 40), 250  # of the network, for each image
TRAINING_STEPS, TRAINING_BATCH = 200, 16
DRAWN, BATCH = 64, 16
BATCHES = (1, 4, 8, 16, 32, 64)  # of which the fastest is what `emission.batch_size` should be
SECOND_ORDER = ("dpmpp", "heun")


def measure(*, quick: bool = False) -> dict[str, Any]:
    """On one thread: train on phantoms, draw a reference, then time and judge every way to draw."""
    with one_thread():
        return _measured(quick)


def lines(found: dict[str, Any]) -> list[str]:
    """The result as a page's table."""
    rows = [
        f"| {name} | {each['images_per_second']:.1f} | {'' if each['fd'] is None else format(each['fd'], '.2f')} |"
        for name, each in found["methods"].items()
    ]
    return [
        f"A UNet of {found['parameters']:,} parameters at 32 x 32, {found['training_steps']} steps on phantoms, batches"
        f" of {BATCH}. FD is the distance (EfficientNet-Lite0) of {found['drawn']} images from those of the same noise"
        f" in {found['reference_calls']} calls of the network; other noise in as many calls: {found['floor']:.2f}.",
        "",
        "| method, calls of the network | images a second | FD |",
        "| --- | --- | --- |",
        *rows,
        "",
        f"The lean copy by `dpmpp` in {CALLS[0]} calls:",
        "",
        "| images at a time | images a second |",
        "| --- | --- |",
        *(f"| {size} | {rate:.1f} |" for size, rate in found["batches"].items()),
        "",
        *(f"- {name}: {value:.2f}" for name, value in found["ratios"].items()),
    ]


def _measured(quick: bool) -> dict[str, Any]:
    drawn, reference_calls, steps = (16, 12, 2) if quick else (DRAWN, REFERENCE_CALLS, TRAINING_STEPS)
    all_calls = CALLS[:1] if quick else CALLS
    denoiser = _trained(steps, quick)
    slim = lean(denoiser)
    noise, other = torch.randn(2, drawn, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0)).to(device())
    wanted, floor = (_features(denoiser, own, "dpmpp", reference_calls) for own in (noise, other))
    methods: dict[str, dict[str, float | None]] = {}
    ratios = {}
    for calls in all_calls:
        plain = _pipeline(denoiser, calls)
        runs: dict[str, Callable[[], object]] = {f"diffusers_ddim_{calls}": plain}
        for sampler in SECOND_ORDER:
            runs[f"lean_{sampler}_{calls}"] = partial(_draw, slim, noise[:BATCH], sampler, calls)
        times = in_turn(runs, 1 if quick else 2)
        ratios[f"lean_vs_diffusers_{calls}"] = ratio(times, f"diffusers_ddim_{calls}", f"lean_dpmpp_{calls}")["median"]
        for name, each in times.items():
            methods[name] = {"images_per_second": BATCH / median(each), "fd": None}
        for sampler in SECOND_ORDER:
            methods[f"lean_{sampler}_{calls}"]["fd"] = _distance(_features(slim, noise, sampler, calls), wanted)
    return {
        "parameters": sum(p.numel() for p in denoiser.parameters()),
        "training_steps": steps,
        "drawn": drawn,
        "reference_calls": reference_calls,
        "floor": _distance(floor, wanted),
        "batches": _batches(slim, noise, quick),
        "ratios": ratios,
        "methods": methods,
        "machine": machine(),
    }


def _batches(slim: Denoiser, noise: Tensor, quick: bool) -> dict[int, float]:
    """Images a second, by how many are drawn at a time."""
    sizes = [size for size in BATCHES if size <= len(noise)]
    runs = {str(size): partial(_draw, slim, noise[:size], "dpmpp", CALLS[0]) for size in sizes}
    times = in_turn(runs, 1 if quick else 3)
    return {size: size / median(times[str(size)]) for size in sizes}


class _Unconditional(nn.Module):
    """The network without classes, called as those with classes are."""

    def __init__(self, unet: UNet2DModel) -> None:
        super().__init__()
        self.unet, self.config = unet, unet.config

    def forward(self, x: Tensor, timestep: Tensor, class_labels: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        found: tuple[Tensor] = self.unet(x, timestep, return_dict=return_dict)
        return found


def _trained(steps: int, quick: bool) -> Denoiser:
    config = DenoiserConfig(
        classes=("",), mask_classes=(), size=(SIZE, SIZE), unshuffle=1, sigma_data=0.5,
        preconditioning="edm", steps=20, guidance=1.0,
    )  # fmt: skip
    denoiser = Denoiser(_Unconditional(network(quick=quick)), config)
    cases = phantoms.draw("chest", 64 if quick else 1000, size=(SIZE, SIZE), seed=0)
    settings = GeneratorSettings(with_masks=False)
    fit_ordinary(
        denoiser,
        diffusion_loss,
        lambda generator: diffusion_rows(choose(cases, TRAINING_BATCH, generator), 1, generator, settings, 1),
        schedule=Schedule(learning_rate=1e-3, first_step=0, steps=steps, total_steps=steps),
        generator=torch.Generator().manual_seed(0),
    )
    return denoiser.eval()


def _pipeline(denoiser: Denoiser, calls: int) -> Callable[[], object]:
    """Diffusers' own, as it comes: single precision, one call of the network a step."""
    pipeline = DDIMPipeline(denoiser.unet.unet, DDIMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    return lambda: pipeline(batch_size=BATCH, num_inference_steps=calls, output_type="np")


@torch.inference_mode()
def _draw(denoiser: Denoiser, noise: Tensor, sampler: str, calls: int) -> Tensor:
    """Images ``[B, 1, H, W]`` in so many calls of the network; Heun's method takes two a step but the last."""
    steps = calls if sampler == "dpmpp" else (calls + 1) // 2
    denoise = samplers.guided(denoiser, torch.zeros(len(noise), device=noise.device).long(), 1.0)
    return samplers.sample(denoise, noise, torch.Generator(), sampler=sampler, steps=steps)  # type: ignore[arg-type]


def _features(denoiser: Denoiser, noise: Tensor, sampler: str, calls: int) -> FloatArray:
    parts = [_draw(denoiser, part, sampler, calls).clamp(-1, 1) for part in torch.split(noise, BATCH)]
    return extract(torch.cat(parts).cpu().numpy())


def _distance(one: FloatArray, other: FloatArray) -> float:
    """Frechet distance of two sets of features."""
    means, covariances = zip(
        *((f.mean(0), np.cov(f.astype(np.float64), rowvar=False)) for f in (one, other)), strict=True
    )
    shared = sqrtm(covariances[0] @ covariances[1]).real
    apart = means[0] - means[1]
    return float(apart @ apart + np.trace(covariances[0] + covariances[1] - 2 * shared))
