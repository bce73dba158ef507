"""The networks that settings describe, without memory for them: whether a study can be carried out at all."""

import torch
from torch import nn

from fedmedgen.errors import SettingsError
from fedmedgen.federation import local_round, plan
from fedmedgen.settings import Settings

UNBUILDABLE = (ArithmeticError, LookupError, TypeError, ValueError, RuntimeError)


def described(settings: Settings, stage: str) -> nn.Module:
    """The network of a stage on torch's "meta" device.

    **Raises** `SettingsError` where the settings describe none that can be built.
    """
    try:
        with torch.device("meta"):
            return local_round.build_model(settings, stage)
    except UNBUILDABLE as error:
        raise SettingsError(f"no network for the stage {stage!r} can be built of generator.*: {error}") from error


def require_feasible(settings: Settings) -> None:
    """Before anybody spends anything: every stage has a network, and each starts from what it needs.

    **Raises** `SettingsError` naming the setting.
    """
    asked, prior = settings.generator, settings.prior
    lessons = settings.prior.steps or (settings.statistics.share and settings.curriculum.steps)
    if asked.trainable != "full" and not lessons:
        raise SettingsError(
            f"generator.trainable={asked.trainable} rests on a network that was taught before the rounds:"
            " set prior.steps, or curriculum.steps with statistics.share"
        )
    if (asked.family == "latent" or prior.steps) and not (prior.roots or prior.phantoms):
        what = "generator=latent" if asked.family == "latent" else f"prior.steps={prior.steps}"
        raise SettingsError(f"{what} learns from public images: set prior.roots or prior.phantoms")
    for stage in plan.stages(settings):
        if stage.name != plan.STATISTICS:
            described(settings, stage.name)
