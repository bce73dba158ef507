"""Losses by row ``[B]``, deterministic in the rows, without statistics across a batch."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedmedgen.models.denoiser import Denoiser
from fedmedgen.models.one_step import OneStepGenerator
from fedmedgen.models.pipeline import coefficients

Rows = dict[str, Tensor]


def diffusion_loss(model: nn.Module, rows: Rows) -> Tensor:
    """Weighted squared error of the denoised image, mean over channels and pixels.

    **Source** Karras et al. 2022, equation 8 with lambda = 1 / c_out^2.
    """
    x, sigma = rows["x"], rows["sigma"]
    c_out = coefficients(sigma, _denoiser(model).spectrum(x))[1]
    clean = model(x + sigma[:, None, None, None] * rows["noise"], sigma, rows["label"])
    loss: Tensor = (rows["weight"] * ((clean - x) / c_out) ** 2).mean(dim=(1, 2, 3))
    return loss


def elbo_loss(model: nn.Module, rows: Rows) -> Tensor:
    """Less the evidence lower bound by pixel, up to a constant, at the code that the row's noise chooses.

    **Source** Kingma and Welling 2014, with a Gaussian decoder of public, fixed deviation.
    """
    networks = one_step(model)
    x, label = rows["x"], rows["label"]
    mean, log_variance = networks.reader(x, label)
    drawn = networks.decoder(mean + (log_variance / 2).exp() * rows["noise"], label)
    error = (rows["weight"] * (drawn - x) ** 2).mean(dim=(1, 2, 3)) / (2 * networks.reader.config.decoder_std**2)
    divergence = (mean**2 + log_variance.exp() - 1 - log_variance).sum(dim=1) / 2
    loss: Tensor = error + divergence / x[0].numel()
    return loss


def segmentation_loss(model: nn.Module, rows: Rows, foreground_weight: float = 1.0, dice_weight: float = 1.0) -> Tensor:
    """Cross-entropy plus `dice_weight` times one minus the soft Dice of the foreground classes, each by case.

    Foreground pixels weigh `foreground_weight` in the cross-entropy: a lesion of a few pixels is lost in it otherwise.
    """
    logits, mask = model(rows["image"]), rows["mask"]
    entropy: Tensor = F.cross_entropy(logits, mask, reduction="none")
    if foreground_weight != 1:
        entropy = torch.where(mask > 0, foreground_weight * entropy, entropy)
    entropy = entropy.mean(dim=(1, 2))
    share = logits.softmax(dim=1)[:, 1:]
    truth = F.one_hot(mask, logits.shape[1]).movedim(-1, 1)[:, 1:].to(share)
    overlap = (share * truth).sum(dim=(2, 3))
    dice = (2 * overlap + 1) / (share.sum(dim=(2, 3)) + truth.sum(dim=(2, 3)) + 1)
    loss: Tensor = entropy + dice_weight - dice_weight * dice.mean(dim=1)
    return loss


def _denoiser(model: nn.Module) -> Denoiser:
    inner = getattr(model, "_module", model)
    if not isinstance(inner, Denoiser):
        raise TypeError(f"the diffusion loss needs a Denoiser; got {type(inner).__name__}")
    return inner


def one_step(model: nn.Module) -> OneStepGenerator:
    """The model itself, whatever an engine has wrapped around it."""
    inner = getattr(model, "_module", model)
    if not isinstance(inner, OneStepGenerator):
        raise TypeError(f"the loss needs a decoder and what reads images; got {type(inner).__name__}")
    return inner
