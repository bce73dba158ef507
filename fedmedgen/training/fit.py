"""Fitting a model to rows: ordinary steps, and steps that release nothing but noised sums."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from fedmedgen.errors import PrivacyError
from fedmedgen.training.rows import DrawRows, Rows, to_device

if TYPE_CHECKING:
    from fedmedgen.privacy.canaries import Planted
    from fedmedgen.privacy.mechanism import StagePlan
    from fedmedgen.privacy.per_patient import Engine
    from fedmedgen.privacy.randomness import Stream

logger = logging.getLogger(__name__)

BETAS = (0.9, 0.99)
WARMUP_STEPS = 20
OPEN_CANARY = 0.1  # of the gradient's norm, where nothing hides a canary, in the first step alone: it would pull


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A stretch of steps within a longer training, and the learning rate along it.

    The rate falls over all `total_steps`; every stretch starts with a short warm-up, since Adam starts afresh.
    """

    learning_rate: float
    first_step: int
    steps: int
    total_steps: int
    decay: Literal["constant", "cosine"] = "cosine"

    def rate(self, step: int) -> float:
        """Learning rate of step 0, 1, … of this stretch."""
        ahead = min(1.0, (step + 1) / min(WARMUP_STEPS, max(1, self.steps // 4)))
        done = (self.first_step + step) / self.total_steps
        fall = (1 + math.cos(math.pi * min(done, 1.0))) / 2 if self.decay == "cosine" else 1.0
        return self.learning_rate * ahead * fall


def fit_ordinary(  # noqa: PLR0913  (as below)
    model: nn.Module,
    loss: Callable[[nn.Module, Rows], Tensor],
    draw_rows: DrawRows,
    *,
    schedule: Schedule,
    generator: torch.Generator,
    proximal: tuple[float, Sequence[Tensor]] | None = None,
    canaries: "Planted | None" = None,
) -> float:
    """Adam with fresh state; the mean loss over the steps.

    `proximal` = (mu, reference weights in the order of the trainable parameters) adds mu / 2 of the squared distance.

    **Source** Li et al. 2020 (FedProx) for the proximal term.
    """
    weights = [value for value in model.parameters() if value.requires_grad]
    optimiser, device, total = _adam(weights), weights[0].device, 0.0
    model.train()
    for step in range(schedule.steps):
        _set_rate(optimiser, schedule.rate(step))
        optimiser.zero_grad()
        mean = loss(model, to_device(draw_rows(generator), device)).mean()
        torch.autograd.backward(mean)
        if canaries is not None and step == 0:
            gradients = [weight.grad for weight in weights if weight.grad is not None]
            canaries.join_openly(gradients, OPEN_CANARY)
        if proximal is not None:
            _pull(weights, *proximal)
        optimiser.step()
        total += float(mean.detach())
    return total / max(1, schedule.steps)


def fit_private(  # noqa: PLR0913  (what DP-SGD by patient takes; the last four by name)
    model: nn.Module,
    engine: "Engine",
    stage: "StagePlan",
    patients: Sequence[DrawRows],
    *,
    schedule: Schedule,
    stream: "Stream",
    proximal: tuple[float, Sequence[Tensor]] | None = None,
    canaries: "Planted | None" = None,
    beside: Callable[[], Sequence[Tensor]] | None = None,
) -> None:
    """DP-SGD by patient: each of `patients` draws that patient's rows; Adam takes the released gradients.

    A patient whose rows can't be drawn, or break the engine, contributes zero. After the release come `proximal`, as in
    `fit_ordinary`, and the gradient of `beside`, a term in which no patient is. `canaries` join each step's sum as
    patients do, and look for themselves in what is released.

    **Guarantee** The data reach the weights only through `schedule.steps` calls of `stage.release`, and nothing else
    computed from them is returned or logged.
    """
    weights = [value for value in model.parameters() if value.requires_grad]
    optimiser = _adam(weights)
    generator = stream.torch_generator()
    model.train()
    for step in range(schedule.steps):
        _set_rate(optimiser, schedule.rate(step))
        chosen = stage.draw(stream, len(patients))
        rows = [
            to_device(drawn, weights[0].device) for index in chosen if (drawn := _drawn(patients[index], generator))
        ]
        total = clipped_sum_of(engine, rows, stage.clip_norm)
        if canaries is not None:
            canaries.join(total, stage, stream)
        released = stage.release(total, stream)
        if canaries is not None:
            canaries.note(released, stage)
        for weight, gradient in zip(weights, released, strict=True):
            weight.grad = gradient.to(weight)
        if beside is not None:
            for weight, gradient in zip(weights, beside(), strict=True):
                assert weight.grad is not None
                weight.grad.add_(gradient.to(weight))
        if proximal is not None:
            _pull(weights, *proximal)
        optimiser.step()


def drawn_rows(draw_rows: DrawRows, generator: torch.Generator, device: torch.device) -> list[Rows]:
    """A patient's rows where they are reckoned with; none where her data can't be used."""
    drawn = _drawn(draw_rows, generator)
    return [to_device(drawn, device)] if drawn else []


def _drawn(draw_rows: DrawRows, generator: torch.Generator) -> Rows | None:
    """A patient's rows; None, said in the site's own log alone, where her data can't be used."""
    try:
        return draw_rows(generator)
    except Exception:
        logger.exception("a patient's rows can't be drawn; she contributes zero")
        return None


def clipped_sum_of(engine: "Engine", rows: Sequence[Rows], clip_norm: float) -> list[Tensor]:
    """The engine's sum; where it fails, patient by patient, so that one whose rows break it takes no other along."""
    try:
        return engine.clipped_sum(rows, clip_norm)
    except PrivacyError:  # says of the model what no patient decides
        raise
    except Exception:
        logger.exception("the engine failed on a sample; each of its patients is taken alone")
    total = engine.clipped_sum([], clip_norm)
    for one in rows:
        try:
            part = engine.clipped_sum([one], clip_norm)
        except Exception:
            logger.exception("a patient's gradient can't be computed; she contributes zero")
            continue
        for whole, own in zip(total, part, strict=True):
            whole += own
    return total


def _adam(weights: list[nn.Parameter]) -> torch.optim.Adam:
    return torch.optim.Adam(weights, lr=0.0, betas=BETAS, fused=True)


def _set_rate(optimiser: torch.optim.Adam, rate: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = rate


def _pull(weights: Sequence[nn.Parameter], strength: float, reference: Sequence[Tensor]) -> None:
    """Add the proximal term's gradient."""
    for weight, anchor in zip(weights, reference, strict=True):
        if weight.grad is not None:
            weight.grad.add_(weight.detach() - anchor.to(weight), alpha=strength)
