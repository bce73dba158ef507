"""A site's round as a plain function: model and cases in, model out; no Flower types, no files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedmedgen.data.cases import Case, CaseSet
from fedmedgen.federation.plan import GENERATOR, SEGMENTER, Stage
from fedmedgen.models.denoiser import Denoiser, build_denoiser
from fedmedgen.models.segmenter import Segmenter, from_denoiser
from fedmedgen.privacy.canaries import Planted
from fedmedgen.privacy.mechanism import StagePlan
from fedmedgen.privacy.per_patient import LossPerRow, make_engine
from fedmedgen.privacy.randomness import Stream
from fedmedgen.settings import Settings
from fedmedgen.training.fit import Schedule, fit_ordinary, fit_private
from fedmedgen.training.losses import diffusion_loss, segmentation_loss
from fedmedgen.training.rows import DrawRows, Rows, choose, diffusion_rows, segmentation_rows

Arrays = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class LocalRound:
    """What is asked of a site in one round of one stage; `mechanism` is None without privacy."""

    settings: Settings
    stage: Stage
    round: int
    mechanism: StagePlan | None
    proximal_mu: float = 0.0
    canaries: Planted | None = None  # the site's own, of which no message knows


@dataclass(frozen=True)
class LocalResult:
    """The site's weights, and the mean loss: computed from patients, so None under privacy."""

    arrays: Arrays
    loss: float | None


def build_model(settings: Settings, stage: str) -> nn.Module:
    """The network of a stage with the study's initial weights, the same on the server and at every site."""
    masks = settings.data.mask_classes
    denoiser = build_denoiser(
        settings.generator,
        num_classes=len(settings.data.classes),
        num_masks=max(0, len(masks) - 1) if settings.generator.with_masks else 0,
        size=settings.data.size,
        seed=settings.seed,
    )
    if stage == GENERATOR:
        return denoiser
    return segmenter_of(denoiser, settings)


def segmenter_of(denoiser: Denoiser, settings: Settings) -> Segmenter:
    """The segmenter that starts from a denoiser's weights (PTDR)."""
    return from_denoiser(
        denoiser,
        num_mask_classes=len(settings.data.mask_classes),
        noise_level=settings.segmenter.noise_level,
        seed=settings.seed,
    )


def trainable_arrays(model: nn.Module) -> Arrays:
    """Float32 copies of the trainable parameters by name: all that ever travels."""
    return {
        name: parameter.detach().cpu().numpy().astype(np.float32, copy=True)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def load_arrays(model: nn.Module, arrays: Mapping[str, NDArray[np.float32]]) -> None:
    """Put arrays, by name, into the trainable parameters of a model."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.from_numpy(np.array(arrays[name])))


def device_of(settings: Settings) -> torch.device:
    """The site's GPU where it has one and the setting allows, else its CPU."""
    wanted = settings.runtime.device
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(wanted)


def run(asked: LocalRound, arrays: Arrays, cases: CaseSet, *, stream: Stream) -> LocalResult:
    """One round at a site: load the global weights, fit on the site's cases, return the new weights.

    **Guarantee** with a mechanism, the result depends on each patient only through `StagePlan.release`.
    """
    device = device_of(asked.settings)
    model = build_model(asked.settings, asked.stage.name)
    load_arrays(model, arrays)
    model.to(device)
    patients = patients_of(asked.stage.name, cases)
    schedule = Schedule(
        learning_rate=asked.stage.learning_rate,
        first_step=(asked.round - 1) * asked.stage.steps,
        steps=asked.stage.steps,
        total_steps=asked.stage.total_steps,
        decay=asked.settings.generator.decay,
    )
    if asked.mechanism is None:
        loss = _fit_ordinary(asked, model, patients, schedule, stream.torch_generator())
        return LocalResult(trainable_arrays(model), loss)
    _fit_private(asked, model, patients, schedule, stream)
    return LocalResult(trainable_arrays(model), None)


def patients_of(stage: str, cases: CaseSet) -> list[tuple[Case, ...]]:
    """The cases of each privacy unit that a stage may train on; the segmenter needs masks."""
    groups = cases.by_patient().values()
    if stage != SEGMENTER:
        return list(groups)
    labelled = (tuple(case for case in group if case.mask is not None) for group in groups)
    return [group for group in labelled if group]


def most_images(settings: Settings, stage: str) -> int:
    """At most so many of a patient's images are averaged in one step."""
    return settings.generator.images_per_patient if stage == GENERATOR else settings.segmenter.images_per_patient


def loss_of(settings: Settings, stage: str) -> LossPerRow:
    if stage == GENERATOR:
        return diffusion_loss
    weights = settings.segmenter
    return partial(segmentation_loss, foreground_weight=weights.foreground_weight, dice_weight=weights.dice_weight)


def draw_rows(settings: Settings, stage: str, draws: int, cases: Sequence[Case], generator: torch.Generator) -> Rows:
    """Training rows of some cases: under the generator's objective each case `draws` times with its own noise."""
    if stage != GENERATOR:
        return segmentation_rows(cases, generator, warp=settings.segmenter.warp)
    return diffusion_rows(
        cases,
        draws,
        generator,
        settings.generator,
        num_classes=len(settings.data.classes),
        mask_classes=settings.data.mask_classes,
    )


def draws_of(asked: LocalRound, patients: list[tuple[Case, ...]]) -> list[DrawRows]:
    """What draws each patient's rows of one private step."""
    settings = asked.settings

    def rows(patient: tuple[Case, ...], generator: torch.Generator) -> Rows:
        cases = choose(patient, most_images(settings, asked.stage.name), generator)
        return draw_rows(settings, asked.stage.name, settings.privacy.noise_draws, cases, generator)

    return [partial(rows, patient) for patient in patients]


def _fit_private(
    asked: LocalRound, model: nn.Module, patients: list[tuple[Case, ...]], schedule: Schedule, stream: Stream
) -> None:
    assert asked.mechanism is not None
    privacy = asked.settings.privacy
    engine = make_engine(privacy.engine, model, loss_of(asked.settings, asked.stage.name), precision=privacy.precision)
    fit_private(
        model, engine, asked.mechanism, draws_of(asked, patients),
        schedule=schedule, stream=stream, proximal=_proximal(asked, model), canaries=asked.canaries,
    )  # fmt: skip


def _fit_ordinary(
    asked: LocalRound,
    model: nn.Module,
    patients: list[tuple[Case, ...]],
    schedule: Schedule,
    generator: torch.Generator,
) -> float:
    settings = asked.settings
    pool = [case for patient in patients for case in patient]
    batch = settings.generator.batch_size if asked.stage.name == GENERATOR else settings.segmenter.batch_size

    def rows(generator: torch.Generator) -> Rows:
        chosen = torch.randint(len(pool), (batch,), generator=generator).tolist()
        return draw_rows(settings, asked.stage.name, 1, [pool[index] for index in chosen], generator)

    loss = loss_of(settings, asked.stage.name)
    pull, canaries = _proximal(asked, model), asked.canaries
    return fit_ordinary(model, loss, rows, schedule=schedule, generator=generator, proximal=pull, canaries=canaries)


def _proximal(asked: LocalRound, model: nn.Module) -> tuple[float, list[Tensor]] | None:
    """FedProx's pull towards the weights the round began with."""
    if not asked.proximal_mu:
        return None
    return asked.proximal_mu, [value.detach().clone() for value in model.parameters() if value.requires_grad]
