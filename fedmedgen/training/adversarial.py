"""A GAN's two sides: a critic, the only one that ever sees patients, and a decoder that learns from the critic alone.

Sites train the critic; the decoder comes to them as public arrays and is trained where the server combines what they
sent. So the decoder is post-processing: it needs no noise of its own, nor is it ever sent back.

**Source** Lim and Ye 2017 (hinge loss); Bie, Kamath and Zhang 2023 for privacy on the critic alone.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedmedgen.data.cases import Case
from fedmedgen.models.one_step import OneStepGenerator
from fedmedgen.settings import GeneratorSettings
from fedmedgen.training.fit import Schedule
from fedmedgen.training.losses import one_step
from fedmedgen.training.rows import DrawRows, Rows, coded_rows, to_device

if TYPE_CHECKING:
    from fedmedgen.privacy.per_patient import Engine

Loss = Callable[[nn.Module, Rows], Tensor]
BETAS = (0.5, 0.99)
ADAM = ("exp_avg", "exp_avg_sq")
STEPS = "steps"
DRAWN = 32  # in one step of the decoder
AVERAGED = 0.995  # of the decoder's weights, a step


def pair_rows(
    cases: Sequence[Case],
    draws: int,  # noqa: ARG001
    generator: torch.Generator,
    settings: GeneratorSettings,
    num_classes: int,
    mask_classes: Sequence[str] = (),
) -> Rows:
    """As `coded_rows`, each case once however many draws are asked for: nothing is drawn for a real image."""
    return coded_rows(cases, 1, generator, settings, num_classes, mask_classes)


def critic_loss(model: nn.Module, rows: Rows) -> Tensor:
    """The hinge on each image, and on one that the decoder draws of the same class."""
    return real_loss(model, rows) + fake_loss(model, rows)


def real_loss(model: nn.Module, rows: Rows) -> Tensor:
    """The hinge on real images; one whose masks or class aren't known teaches nothing: that would mark it as real."""
    networks, known = one_step(model), rows["weight"].amin(dim=(1, 2, 3))
    if networks.num_classes:
        known = known * (rows["label"] < networks.num_classes)
    return known * F.relu(1 - networks.reader(rows["x"], rows["label"]))


def fake_loss(model: nn.Module, rows: Rows) -> Tensor:
    """The hinge on what the decoder draws from the rows' noise."""
    networks = one_step(model)
    with torch.no_grad():
        drawn = networks.decoder(rows["noise"], rows["label"])
    return F.relu(1 + networks.reader(drawn, rows["label"]))


def decoder_loss(model: nn.Module, rows: Rows) -> Tensor:
    """Less what the critic makes of the decoder's images."""
    networks = one_step(model)
    score: Tensor = networks.reader(networks.decoder(rows["noise"], rows["label"]), rows["label"])
    return -score


def fake_rows(model: OneStepGenerator, count: int, generator: torch.Generator) -> Rows:
    """Noise for `count` drawn images, and labels by the model's public class shares. No case is in them.

    Were they spread otherwise than the real ones, the critic would go by the label alone.
    """
    shares = model.class_shares.detach().cpu().clamp(min=0) + 1e-9  # whatever a server sends
    labels = torch.multinomial(shares, count, replacement=True, generator=generator)
    noise = torch.randn(count, model.decoder.config.code, generator=generator)
    return to_device({"noise": noise, "label": labels}, model.device)


class DecoderTraining:
    """Adam on the decoder, against the critic as it stands, and the average of the decoder's weights over its steps."""

    def __init__(self, model: OneStepGenerator, state: Mapping[str, Tensor] | None = None) -> None:
        self._model = model
        self._weights = dict(model.decoder.named_parameters())
        self._average = {name: weight.detach().clone() for name, weight in self._weights.items()}
        self._steps = 0
        self._optimiser = torch.optim.Adam(self._weights.values(), lr=0.0, betas=BETAS)
        if state:
            self._go_on(state)

    @property
    def average(self) -> dict[str, Tensor]:
        return {f"decoder.{name}": value for name, value in self._average.items()}

    @property
    def state(self) -> dict[str, Tensor]:
        """All that the next step needs beside the weights, to go on bit by bit."""
        adam = {f"{key}.{name}": self._optimiser.state[weight][key]
                for name, weight in self._weights.items() if self._steps for key in ADAM}  # fmt: skip
        return {STEPS: torch.tensor([float(self._steps)]), **adam, **self.average}

    def _go_on(self, state: Mapping[str, Tensor]) -> None:
        self._steps = int(state[STEPS])
        for name, weight in self._weights.items():
            self._average[name] = state[f"decoder.{name}"].clone().to(weight)
            if self._steps:
                moments = {key: state[f"{key}.{name}"].clone().to(weight) for key in ADAM}
                self._optimiser.state[weight] = {"step": torch.tensor(float(self._steps)), **moments}

    def step(self, rate: float, generator: torch.Generator) -> None:
        """One step on `DRAWN` images."""
        rows = fake_rows(self._model, DRAWN, generator)
        with _drawing(self._model):
            gradients = torch.autograd.grad(decoder_loss(self._model, rows).mean(), list(self._weights.values()))
        for weight, gradient in zip(self._weights.values(), gradients, strict=True):
            weight.grad = gradient
        self._optimiser.param_groups[0]["lr"] = rate
        self._optimiser.step()
        self._optimiser.zero_grad()
        self._steps += 1
        kept = min(AVERAGED, self._steps / (self._steps + 9))
        for name, weight in self._weights.items():
            self._average[name].lerp_(weight.detach(), 1 - kept)


def fit_pair(
    model: OneStepGenerator, loss: Loss, draw_rows: DrawRows, *, schedule: Schedule, generator: torch.Generator
) -> float:
    """Critic and decoder in turn, on images that are no patient's; the decoder ends as its average. The mean loss."""
    weights = [value for value in model.parameters() if value.requires_grad]
    optimiser, decoder, total = torch.optim.Adam(weights, lr=0.0, betas=BETAS), DecoderTraining(model), 0.0
    model.train()
    for step in range(schedule.steps):
        optimiser.param_groups[0]["lr"] = schedule.rate(step)
        optimiser.zero_grad()
        mean = loss(model, to_device(draw_rows(generator), model.device)).mean()
        torch.autograd.backward(mean)
        optimiser.step()
        decoder.step(schedule.rate(step), generator)
        total += float(mean.detach())
    model.load_state_dict(decoder.average, strict=False)
    return total / max(1, schedule.steps)


def fakes_beside(
    model: OneStepGenerator,
    settings: GeneratorSettings,
    engine_of: "Callable[[Loss], Engine]",
    clip_norm: float,
    generator: torch.Generator,
) -> Callable[[], list[Tensor]]:
    """The fake term of each private step: the mean over a batch of drawn images of gradients clipped as a patient's is.

    Clipped alike, both terms weigh alike, as they do without privacy.

    **Guarantee** No case is in it: it depends on the weights, the clip and the generator alone.
    """

    engine, count = engine_of(fake_loss), settings.batch_size

    def gradient() -> list[Tensor]:
        rows = fake_rows(model, count, generator)
        ones = [{key: value[place : place + 1] for key, value in rows.items()} for place in range(count)]
        return [part / count for part in engine.clipped_sum(ones, clip_norm)]

    return gradient


@contextmanager
def _drawing(model: OneStepGenerator) -> Iterator[None]:
    """The decoder trains inside, the critic doesn't."""
    model.decoder.requires_grad_(True)
    model.reader.requires_grad_(False)
    try:
        yield
    finally:
        model.decoder.requires_grad_(False)
        model.reader.requires_grad_(True)
