"""Membership inference: can one who holds the generator tell patients that took part from patients held out?

Every attack gives each image a score, higher where it looks like a member, from the released generator alone.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import beta
from sklearn.metrics import roc_auc_score
from torch import Tensor

from fedmedgen.data.cases import CaseSet
from fedmedgen.federation.local_statistics import as_released
from fedmedgen.models.basis import standardised
from fedmedgen.models.denoiser import Denoiser
from fedmedgen.models.generators import Generator
from fedmedgen.models.moments import MomentsGenerator
from fedmedgen.models.one_step import OneStepGenerator
from fedmedgen.models.pipeline import coefficients
from fedmedgen.settings import Settings
from fedmedgen.training.losses import elbo_loss
from fedmedgen.training.rows import encode

SIGMAS = (0.1, 0.2, 0.4, 0.8)
DRAWS = 8  # of the noise, for each level
SMALLEST_SIGMA = 0.02  # at which PIA reads the noise off the image itself
BATCH = 128
RESAMPLES = 1000
FALSE_POSITIVES = {"tpr_at_1pct_fpr": 0.01, "tpr_at_01pct_fpr": 0.001}
RIDGE = 1e-3  # of a covariance's mean eigenvalue
MAIN = ("loss", "likelihood", "critic")  # the one attack of each family that canaries are looked for by
Scores = NDArray[np.float64]
Parts = list[tuple[Tensor, Tensor]]
Attack = Callable[[Denoiser, Tensor, Tensor, Tensor], Tensor]


def attacks(generator: Generator, cases: CaseSet, settings: Settings) -> dict[str, Scores]:
    """The scores ``[N]`` of each attack that fits the family of the generator, which a study of `settings` made."""
    seed, released = settings.seed, isinstance(generator, MomentsGenerator)
    x = as_released(settings, cases.cases) if released else encode(cases.cases, generator.config.mask_classes)
    labels = torch.tensor([generator.num_classes if case.label is None else case.label for case in cases])
    if isinstance(generator, MomentsGenerator):
        return {"likelihood": likelihood(generator, x, labels)}
    if isinstance(generator, OneStepGenerator):
        return one_step(generator, x, labels, seed=seed)
    inputs = [generator.to_input(part) for part in torch.split(x, BATCH)]
    parts = list(zip(inputs, torch.split(labels, BATCH), strict=True))
    found = {f"loss at {sigma:g}": _together(parts, generator, sigma, partial(_loss, seed=seed)) for sigma in SIGMAS}
    found["loss"] = np.mean(list(found.values()), axis=0)
    found["PIA"] = np.mean([_together(parts, generator, sigma, _pia) for sigma in SIGMAS], axis=0)
    found["SimA"] = np.mean([_together(parts, generator, sigma, _sima) for sigma in SIGMAS], axis=0)
    return found


@torch.inference_mode()
def one_step(generator: OneStepGenerator, x: Tensor, labels: Tensor, *, seed: int) -> dict[str, Scores]:
    """What a GAN's critic makes of each image; of a VAE the evidence lower bound."""
    parts = list(zip(torch.split(x, BATCH), torch.split(labels, BATCH), strict=True))
    name, score = ("critic", generator.reader) if generator.adversarial else ("loss", partial(_bound, generator, seed))
    return {name: torch.cat([score(images, own) for images, own in parts]).double().numpy()}


@torch.inference_mode()
def likelihood(generator: MomentsGenerator, x: Tensor, labels: Tensor) -> Scores:
    """The log-density of an image's coefficients under its class's released Gaussian, nan where a network draws them.

    A case without a label is scored under the first class.
    """
    sampler = generator.sampler
    if sampler.network is not None:
        return np.full(len(x), np.nan)
    z = (((standardised(x)[0] - sampler.mean).flatten(1)) @ sampler.components.flatten(1).T / sampler.scale).double()
    scores = np.zeros(len(x))
    for number in range(generator.num_classes):
        here = (labels % generator.num_classes) == number
        if not here.any():
            continue
        factor = sampler.factors[number].double()
        covariance = factor @ factor.T
        ridge = RIDGE * covariance.trace() / len(covariance)
        covariance = covariance + ridge * torch.eye(len(covariance), dtype=torch.float64)
        normal = torch.distributions.MultivariateNormal(sampler.means[number].double(), covariance)
        scores[here.numpy()] = normal.log_prob(z[here]).numpy()  # type: ignore[no-untyped-call]
    return scores


def summary(members: Mapping[str, Scores], others: Mapping[str, Scores], *, seed: int = 0) -> dict[str, Any]:
    """AUC and the share of members found at 1 % and 0.1 % false alarms, each with a 95 % interval, for each attack.

    The shares are None below 1,000 and 10,000 held out: a threshold that so few of them pass would rest on fewer than
    ten.
    """
    return {name: compare(members[name], others[name], seed=seed) for name in members}


def compare(members: Scores, others: Scores, *, seed: int = 0) -> dict[str, Any]:
    """**Shapes** members ``[N]``, others ``[M]``."""
    if not (np.isfinite(members).all() and np.isfinite(others).all()):
        return {"skipped": "the attack gave no finite scores"}
    truth = np.concatenate([np.ones(len(members)), np.zeros(len(others))])
    auc = float(roc_auc_score(truth, np.concatenate([members, others])))
    found: dict[str, Any] = {"auc": auc, "members": len(members), "holdout": len(others)}
    found["ci"] = {"auc": _bootstrap(members, others, seed)}
    for name, rate in FALSE_POSITIVES.items():
        found[name] = found["ci"][name] = None
        if len(others) >= math.ceil(10 / rate):
            found[name] = _hits(members, others, rate) / len(members)
            found["ci"][name] = _share_interval(members, others, rate, seed)
    return found


def _hits(members: Scores, others: Scores, rate: float) -> int:
    """Members above the score that the share `rate` of the others exceeds."""
    return int((members > np.quantile(others, 1 - rate, method="higher")).sum())


def _share_interval(members: Scores, others: Scores, rate: float, seed: int) -> list[float]:
    """The wider of two: the exact one of a fixed threshold, and that of resamples, whose thresholds differ."""
    draw = np.random.default_rng(seed)
    shares = [
        _hits(draw.choice(members, len(members)), draw.choice(others, len(others)), rate) / len(members)
        for _ in range(RESAMPLES)
    ]
    low, high = clopper_pearson(_hits(members, others, rate), len(members))
    return [min(low, float(np.quantile(shares, 0.025))), max(high, float(np.quantile(shares, 0.975)))]


def clopper_pearson(hits: int, count: int, *, confidence: float = 0.95) -> list[float]:
    """The exact interval of a share."""
    tail = (1 - confidence) / 2
    low = 0.0 if hits == 0 else float(beta.ppf(tail, hits, count - hits + 1))
    high = 1.0 if hits == count else float(beta.ppf(1 - tail, hits + 1, count - hits))
    return [low, high]


def _bootstrap(members: Scores, others: Scores, seed: int) -> list[float]:
    """A 95 % interval of the AUC over resamples of both sides."""
    draw = np.random.default_rng(seed)
    ordered, found = np.sort(others), []
    for _ in range(RESAMPLES):
        few = draw.choice(members, len(members))
        against = np.sort(draw.choice(ordered, len(ordered)))
        below = np.searchsorted(against, few, "left") + np.searchsorted(against, few, "right")
        found.append(float(below.mean() / (2 * len(against))))
    return [float(np.quantile(found, 0.025)), float(np.quantile(found, 0.975))]


def _together(parts: Parts, generator: Denoiser, sigma: float, attack: Attack) -> Scores:
    with torch.inference_mode():
        found = [attack(generator, x, labels, torch.full((len(x),), sigma)) for x, labels in parts]
    return np.concatenate([part.double().numpy() for part in found])


def _loss(generator: Denoiser, x: Tensor, labels: Tensor, sigma: Tensor, *, seed: int) -> Tensor:
    """Less the diffusion loss at one noise level, mean over the same few draws of noise for every image."""
    noise = torch.Generator().manual_seed(seed)
    scale = coefficients(sigma, generator.spectrum(x))[1]
    total = torch.zeros(len(x))
    for _ in range(DRAWS):
        added = sigma[:, None, None, None] * torch.randn((1, *x.shape[1:]), generator=noise)
        total += (((generator(x + added, sigma, labels) - x) / scale) ** 2).mean(dim=(1, 2, 3))
    return -total / DRAWS


def _bound(generator: OneStepGenerator, seed: int, x: Tensor, labels: Tensor) -> Tensor:
    """A VAE's evidence lower bound, mean over the same few draws of noise for every image."""
    noise = torch.Generator().manual_seed(seed)
    rows = {"x": x, "label": labels, "weight": torch.ones_like(x)}
    total = torch.zeros(len(x))
    for _ in range(DRAWS):
        total += elbo_loss(
            generator, {**rows, "noise": torch.randn((1, generator.decoder.config.code), generator=noise)}
        )
    return -total / DRAWS


def _pia(generator: Denoiser, x: Tensor, labels: Tensor, sigma: Tensor) -> Tensor:
    """Less the error in the noise that the generator itself reads off the nearly clean image.

    **Source** Kong et al. 2024 (PIA), in the noise levels of Karras et al. 2022.
    """
    least = torch.full_like(sigma, SMALLEST_SIGMA)
    own = (x - generator(x, least, labels)) / SMALLEST_SIGMA
    level = sigma[:, None, None, None]
    noisy = x + level * own
    found = (noisy - generator(noisy, sigma, labels)) / level
    error: Tensor = (found - own).abs().pow(4).mean(dim=(1, 2, 3))
    return -error


def _sima(generator: Denoiser, x: Tensor, labels: Tensor, sigma: Tensor) -> Tensor:
    """Less the size of the noise that the generator sees in the image as it is: one query.

    **Source** Rao et al. 2025 (SimA).
    """
    found = (x - generator(x, sigma, labels)) / sigma[:, None, None, None]
    size: Tensor = found.abs().pow(4).mean(dim=(1, 2, 3)).pow(0.25)
    return -size
