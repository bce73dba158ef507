"""The rows of the few-labels table: ways to a network that marks lungs, and the runs that pre-train some of them."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedmedgen.data.cases import Case
from fedmedgen.errors import RunError
from fedmedgen.federation import local_round, plan
from fedmedgen.models import pipeline
from fedmedgen.models.denoiser import Denoiser
from fedmedgen.models.saving import load_generator
from fedmedgen.models.segmenter import Segmenter
from fedmedgen.reporting.record import read
from fedmedgen.seeds import seed_of
from fedmedgen.settings import Settings
from fedmedgen.training.fit import Schedule, fit_ordinary
from fedmedgen.training.rows import Rows

Predict = Callable[[Tensor], Tensor]
"""Masks ``[B, H, W]`` of images ``[B, 1, H, W]``."""
LEDM_LEVELS = (0.05, 0.2, 0.6)
FEDAVG_ROUNDS = 3
PSEUDO = 200  # unlabelled radiographs that self-training labels


@dataclass(frozen=True)
class Cell:
    """One row at one number of labels: what is labelled, what is there besides, and the learning rate."""

    row: str
    labels: int
    draw: int
    rate: float
    settings: Settings
    labelled: Sequence[Case]
    pool: Sequence[Case]  # all training cases of the site; what is labelled of them is `labelled` alone
    runs: Path

    @property
    def seed(self) -> int:
        return seed_of(self.settings.seed, "few labels", self.labels, self.draw)

    @property
    def steps(self) -> int:
        return self.settings.segmenter.local_steps


def pretrained(source: str | None, runs: Path) -> bool:
    """Whether the run that a row starts from has ended; rows that start from none are ready."""
    return source is None or (runs / f"pretrain-{source}" / "generator" / "model_index.json").is_file()


def denoiser_of(cell: Cell) -> Denoiser:
    """The denoiser that the row starts from."""
    found = load_generator(cell.runs / f"pretrain-{SOURCES[cell.row]}" / "generator")
    if not isinstance(found, Denoiser):
        raise RunError(f"expected a denoiser to start {cell.row} from; got a {type(found).__name__}")
    return found


def fresh(cell: Cell) -> Segmenter:
    """A segmenter with the initial weights of the cell's own seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cell.seed)
        model = local_round.build_model(seeded(cell), plan.SEGMENTER)
    assert isinstance(model, Segmenter)
    return model


def tuned(model: nn.Module, cell: Cell, cases: Sequence[Case], *, steps: int, after: int = 0) -> nn.Module:
    """Fine-tune what can be trained of a model on cases that have masks, by the study's own recipe.

    `after` steps have been taken before, of the cell's.
    """
    settings, batch = cell.settings, cell.settings.segmenter.batch_size

    def rows(generator: torch.Generator) -> Rows:
        chosen = torch.randint(len(cases), (batch,), generator=generator).tolist()
        return local_round.draw_rows(settings, plan.SEGMENTER, 1, [cases[place] for place in chosen], generator, model)

    total = max(steps, cell.steps if after else 0)
    schedule = Schedule(learning_rate=cell.rate, first_step=after, steps=steps, total_steps=total)
    generator = torch.Generator().manual_seed(cell.seed + after)
    loss = local_round.loss_of(settings, plan.SEGMENTER)
    fit_ordinary(model, loss, rows, schedule=schedule, generator=generator)
    return model.eval()


def masks_of(model: nn.Module) -> Predict:
    return lambda images: torch.cat([model(part).argmax(1) for part in torch.split(images, 64)])


def mean_mask(cell: Cell) -> Predict:
    """No network: the pixels that most of the labelled masks hold."""
    masks = torch.from_numpy(np.stack([case.mask for case in cell.labelled if case.mask is not None]))
    common = (masks.float().mean(0) >= 0.5).to(torch.uint8)
    return lambda images: common.expand(len(images), *common.shape)


def scratch(cell: Cell, *, times: int = 1) -> Predict:
    return masks_of(tuned(fresh(cell), cell, cell.labelled, steps=times * cell.steps))


def self_training(cell: Cell) -> Predict:
    """A teacher from the labels marks the site's other radiographs; a student learns from both, half and half."""
    teacher = scratch(cell)
    own = {(case.site, case.name) for case in cell.labelled}
    others = [case for case in cell.pool if (case.site, case.name) not in own]
    others = sorted(others, key=lambda case: seed_of(0, "pseudo", case.site, case.name))[:PSEUDO]  # of every class
    with torch.no_grad():
        guesses = teacher(torch.from_numpy(np.stack([case.image for case in others]))).to(torch.uint8).numpy()
    marked = [_with_mask(case, guess) for case, guess in zip(others, guesses, strict=True)]
    return masks_of(tuned(fresh(cell), cell, _evenly(cell.labelled, marked), steps=cell.steps))


def pairs(cell: Cell) -> Predict:
    """From nothing, on synthetic pairs of image and mask and the labelled cases, half and half."""
    record = read(cell.runs / f"pretrain-{SOURCES[cell.row]}")
    if record.synthetic is None:
        raise RunError(f"expected a synthetic set for {cell.row}: pre-train it again")
    return masks_of(tuned(fresh(cell), cell, _evenly(cell.labelled, list(record.synthetic)), steps=cell.steps))


def ptdr(cell: Cell) -> Predict:
    """The whole denoiser, fine-tuned end to end with a new head (Rousseau et al. 2023)."""
    return masks_of(tuned(from_denoiser(cell), cell, cell.labelled, steps=cell.steps))


def from_denoiser(cell: Cell) -> nn.Module:
    return local_round.segmenter_of(denoiser_of(cell), seeded(cell))


def fedavg(cell: Cell, start: Callable[[Cell], nn.Module]) -> Predict:
    """Every site fine-tunes on its own labels, and the weights are averaged by their number, round after round."""
    shared, steps = start(cell), cell.steps // FEDAVG_ROUNDS
    own = [[case for case in cell.labelled if case.site == site] for site in sorted({c.site for c in cell.labelled})]
    for number in range(FEDAVG_ROUNDS):
        trained = [tuned(copy.deepcopy(shared), cell, cases, steps=steps, after=number * steps) for cases in own]
        with torch.no_grad():
            for name, weight in shared.named_parameters():
                parts = [len(cases) * site.get_parameter(name) for cases, site in zip(own, trained, strict=True)]
                weight.copy_(torch.stack(parts).sum(0) / len(cell.labelled))
    return masks_of(shared.eval())


def ledm(cell: Cell) -> Predict:
    """A classifier of each pixel on the frozen denoiser's features at a few noise levels (Baranchuk et al. 2022)."""
    return masks_of(tuned(PixelClassifier(denoiser_of(cell), cell), cell, cell.labelled, steps=cell.steps))


class PixelClassifier(nn.Module):
    """Two 1x1 convolutions on what the upward blocks hold of a noisy image, brought to its size."""

    def __init__(self, denoiser: Denoiser, cell: Cell) -> None:
        super().__init__()
        self.unet, self.config = copy.deepcopy(denoiser.unet).requires_grad_(False), denoiser.config
        self.noise = torch.randn((1, 1, *cell.settings.data.size), generator=torch.Generator().manual_seed(0))
        self._seen: list[Tensor] = []
        for block in self.unet.up_blocks:
            block.register_forward_hook(lambda _block, _given, out: self._seen.append(out))
        width = sum(part.shape[1] for part in self._features(torch.zeros(1, 1, *cell.settings.data.size)))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(cell.seed)
            outputs = len(cell.settings.data.mask_classes)
            self.head = nn.Sequential(nn.Conv2d(width, 64, 1), nn.SiLU(), nn.Conv2d(64, outputs, 1))

    def forward(self, images: Tensor) -> Tensor:
        size = images.shape[-2:]
        parts = [F.interpolate(part, size, mode="bilinear") for part in self._features(images)]
        logits: Tensor = self.head(torch.cat([F.layer_norm(part, part.shape[1:]) for part in parts], 1))
        return logits

    @torch.no_grad()
    def _features(self, images: Tensor) -> list[Tensor]:
        self._seen.clear()
        labels = torch.full((len(images),), self.unet.config.num_class_embeds - 1)
        for level in LEDM_LEVELS:
            sigma = torch.full((len(images),), level)
            spectrum = pipeline.power(images.shape, self.config.sigma_data, self.config.preconditioning)
            noisy = pipeline.coefficients(sigma, spectrum)[2] * (images + level * self.noise)
            pipeline.network(self.unet, noisy, sigma, labels, self.config.unshuffle)
        return list(self._seen)


def _evenly(few: Sequence[Case], many: Sequence[Case]) -> list[Case]:
    """All of both, the few repeated until they are as many."""
    return [*many, *list(few) * -(-len(many) // len(few))]


def _with_mask(case: Case, mask: np.ndarray) -> Case:
    return Case(image=case.image, mask=mask, name=case.name, site=case.site, patient=case.patient)


def seeded(cell: Cell) -> Settings:
    """The study's settings under the cell's own seed."""
    return replace(cell.settings, seed=cell.seed % 2**31)


ROWS: dict[str, Callable[[Cell], Predict]] = {
    "mean-mask": mean_mask,
    "scratch": scratch,
    "ptdr-federated": ptdr,
    "ptdr-federated-long": ptdr,
    "ptdr-federated-longer": ptdr,
    "ptdr-federated-longest": ptdr,
    "ptdr-federated-low": ptdr,
    "ptdr-local": ptdr,
    "ptdr-local-long": ptdr,
    "ptdr-local-montgomery": ptdr,
    "ptdr-eps10": ptdr,
    "pairs-none": pairs,
    "pairs-eps10": pairs,
    "scratch-2x": partial(scratch, times=2),
    "ptdr-phantoms": ptdr,
    "ptdr-centralised": ptdr,
    "ptdr-centralised-long": ptdr,
    "ptdr-eps1": ptdr,
    "pairs-eps1": pairs,
    "self-training": self_training,
    "autoencoder": ptdr,
    "ledm": ledm,
    "scratch-fedavg": partial(fedavg, start=fresh),
    "ptdr-fedavg": partial(fedavg, start=from_denoiser),
}
SOURCES = {
    **{row: row.removeprefix("ptdr-") for row in ROWS if row.startswith("ptdr-")},
    **{row: row for row in ROWS if row.startswith("pairs-")},
    "autoencoder": "autoencoder",
    "ptdr-short": "short",
    "ptdr-fedavg": "federated-long",
    "ledm": "federated",
}
