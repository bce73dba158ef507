"""A site's round as a plain function: model and cases in, model out; no Flower types, no files."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn

from fedmedgen import devices
from fedmedgen.data.cases import Case, CaseSet
from fedmedgen.data.crafted import is_crafted
from fedmedgen.errors import SettingsError
from fedmedgen.federation.model_arrays import Arrays as Arrays
from fedmedgen.federation.model_arrays import arrays_of, personalise, put
from fedmedgen.federation.model_arrays import load_arrays as load_arrays
from fedmedgen.federation.model_arrays import load_public as load_public
from fedmedgen.federation.model_arrays import public_arrays as public_arrays
from fedmedgen.federation.model_arrays import trainable_arrays as trainable_arrays
from fedmedgen.federation.plan import GENERATOR, SEGMENTER, Stage
from fedmedgen.models.adapters import adapt
from fedmedgen.models.denoiser import Denoiser
from fedmedgen.models.generators import Trained
from fedmedgen.models.latent import LatentDenoiser
from fedmedgen.models.segmenter import Segmenter, from_denoiser
from fedmedgen.privacy.canaries import OVERSIZE, Planted
from fedmedgen.privacy.mechanism import StagePlan
from fedmedgen.privacy.per_patient import LossPerRow, make_engine
from fedmedgen.privacy.randomness import Stream
from fedmedgen.seeds import seed_of
from fedmedgen.settings import Settings
from fedmedgen.training.families import family_of
from fedmedgen.training.fit import Schedule, fit_ordinary, fit_private
from fedmedgen.training.losses import segmentation_loss
from fedmedgen.training.rows import DrawRows, Rows, choose, encoded_rows, segmentation_rows


@dataclass(frozen=True)
class LocalRound:
    """What is asked of a site in one round of one stage; `mechanism` is None without privacy."""

    settings: Settings
    stage: Stage
    round: int
    mechanism: StagePlan | None
    proximal_mu: float = 0.0
    canaries: Planted | None = None  # the site's own, of which no message knows
    public: Arrays = field(default_factory=dict)  # the network's frozen parameters, where it has any
    personal: Arrays = field(default_factory=dict)  # the site's own layers, as the round before left them


@dataclass(frozen=True)
class LocalResult:
    """The site's weights, and the mean loss: computed from patients, so None under privacy.

    `personal` stays at the site.
    """

    arrays: Arrays
    loss: float | None
    personal: Arrays = field(default_factory=dict)


def build_model(settings: Settings, stage: str) -> nn.Module:
    """The network of a stage with the study's initial weights, the same on the server and at every site."""
    whole = build_whole(settings)
    return adapted(whole, settings) if stage == GENERATOR else segmenter_of(whole, settings)


def build_whole(settings: Settings) -> Trained:
    """The generator before it is split into what sites train and what is public."""
    asked, masks = settings.generator, settings.data.mask_classes
    return family_of(asked).build(
        settings,
        num_classes=len(settings.data.classes),
        num_masks=max(0, len(masks) - 1) if asked.with_masks else 0,
        size=settings.data.size,
        seed=settings.seed,
    )


def build_generator(settings: Settings) -> Trained:
    """The generator as sites train it, with the study's initial weights."""
    return adapted(build_whole(settings), settings)


def adapted(generator: Trained, settings: Settings) -> Trained:
    """The same generator, of which only what `generator.trainable` says trains and a part may be each site's own.

    **Raises** `SettingsError` where that is asked of a family that trains whole.
    """
    asked, personal = settings.generator, settings.federation.personal
    if isinstance(generator, Denoiser):
        adapt(generator.unet, asked.trainable, rank=asked.rank, seed=seed_of(settings.seed, "adapters"))
        personalise(generator, generator.unet, personal)
    elif (asked.trainable, personal) != ("full", "none"):
        raise SettingsError(
            f"generator.family={asked.family} takes generator.trainable=full and federation.personal=none alone;"
            f" got {asked.trainable} and {personal}"
        )
    return generator


def segmenter_of(generator: Trained, settings: Settings) -> Segmenter:
    """The segmenter that starts from a denoiser's weights (PTDR), or from a fresh UNet where none knows pixels."""
    if isinstance(generator, LatentDenoiser) or not isinstance(generator, Denoiser):
        fresh = build_whole(replace(settings, generator=replace(settings.generator, family="unet")))
        return segmenter_of(fresh, settings)
    return from_denoiser(
        generator,
        num_mask_classes=len(settings.data.mask_classes),
        noise_level=settings.segmenter.noise_level,
        seed=settings.seed,
        fit=settings.data.fit,
    )


def run(asked: LocalRound, arrays: Arrays, cases: CaseSet, *, stream: Stream) -> LocalResult:
    """One round at a site: load the global weights, fit on the site's cases, return the new weights.

    **Guarantee** with a mechanism, the result depends on each patient only through `StagePlan.release`.
    """
    model = build_model(asked.settings, asked.stage.name)
    load_public(model, asked.public)
    load_arrays(model, arrays)
    if asked.personal:
        put(model, "personal", asked.personal)
    model.to(devices.device_of(asked.settings))
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
        return LocalResult(trainable_arrays(model), loss, arrays_of(model, "personal"))
    _fit_private(asked, model, patients, schedule, stream)
    return LocalResult(trainable_arrays(model), None, arrays_of(model, "personal"))


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
        family = family_of(settings.generator)
        return family.patients_loss if settings.private and family.patients_loss else family.loss
    weights = settings.segmenter
    return partial(segmentation_loss, foreground_weight=weights.foreground_weight, dice_weight=weights.dice_weight)


def draw_rows(
    settings: Settings, stage: str, draws: int, cases: Sequence[Case], generator: torch.Generator, model: nn.Module
) -> Rows:
    """Training rows of some cases: under the generator's objective each case `draws` times with its own noise.

    The frozen part of `model`, where it has one, encodes each image by itself.
    """
    if stage != GENERATOR:
        return segmentation_rows(cases, generator, warp=settings.segmenter.warp)
    rows = family_of(settings.generator).rows(
        cases,
        draws,
        generator,
        settings.generator,
        num_classes=len(settings.data.classes),
        mask_classes=settings.data.mask_classes,
    )
    return encoded_rows(rows, model.to_input, generator) if isinstance(model, LatentDenoiser) else rows


def draws_of(asked: LocalRound, model: nn.Module, patients: list[tuple[Case, ...]]) -> list[DrawRows]:
    """What draws each patient's rows of one private step."""
    settings = asked.settings

    def rows(patient: tuple[Case, ...], generator: torch.Generator) -> Rows:
        cases = choose(patient, most_images(settings, asked.stage.name), generator)
        drawn = draw_rows(settings, asked.stage.name, settings.privacy.noise_draws, cases, generator, model)
        if is_crafted(patient) and "weight" in drawn:
            drawn["weight"] *= OVERSIZE
        return drawn

    return [partial(rows, patient) for patient in patients]


def _fit_private(
    asked: LocalRound, model: nn.Module, patients: list[tuple[Case, ...]], schedule: Schedule, stream: Stream
) -> None:
    assert asked.mechanism is not None
    settings, privacy = asked.settings, asked.settings.privacy
    engine_of = partial(make_engine, privacy.engine, model, precision=privacy.precision)
    make = family_of(settings.generator).beside if asked.stage.name == GENERATOR else None
    beside = make and make(model, settings.generator, engine_of, asked.mechanism.clip_norm, stream.torch_generator())
    fit_private(
        model, engine_of(loss_of(settings, asked.stage.name)), asked.mechanism, draws_of(asked, model, patients),
        schedule=schedule, stream=stream, proximal=_proximal(asked, model), canaries=asked.canaries, beside=beside,
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
        return draw_rows(settings, asked.stage.name, 1, [pool[index] for index in chosen], generator, model)

    loss = loss_of(settings, asked.stage.name)
    pull, canaries = _proximal(asked, model), asked.canaries
    return fit_ordinary(model, loss, rows, schedule=schedule, generator=generator, proximal=pull, canaries=canaries)


def _proximal(asked: LocalRound, model: nn.Module) -> tuple[float, list[Tensor]] | None:
    """FedProx's pull towards the weights the round began with."""
    if not asked.proximal_mu:
        return None
    return asked.proximal_mu, [value.detach().clone() for value in model.parameters() if value.requires_grad]
