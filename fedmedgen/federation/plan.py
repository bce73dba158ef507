"""What a study asks of each site, stage by stage, and the privacy plan that follows from it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from fedmedgen.errors import BudgetError, PolicyError
from fedmedgen.privacy import accountant, skellam
from fedmedgen.privacy.budget import Plan
from fedmedgen.privacy.mechanism import StagePlan
from fedmedgen.privacy.shared_noise import SharedNoise
from fedmedgen.settings import Settings

STATISTICS = "statistics"
GENERATOR = "generator"
SEGMENTER = "segmenter"
STATISTICS_CLIP = 1.0  # vectors are scaled by public constants to a norm of about 1


@dataclass(frozen=True)
class Stage:
    """One stage of rounds: `steps` steps at each site in each of `attempts` at each of `rounds` rounds."""

    name: str
    rounds: int
    steps: int
    learning_rate: float
    attempts: int = 1

    @property
    def total_steps(self) -> int:
        return self.rounds * self.steps * self.attempts


def stages(settings: Settings) -> tuple[Stage, ...]:
    """The stages of a study, in order; the segmenter only where there are masks.

    The statistics come first, and alone where they take all of epsilon.
    """
    release = (Stage(STATISTICS, settings.statistics.rounds, 1, 0.0),) if settings.statistics.share else ()
    known = release if settings.statistics.share == 1 else release + _rounds(settings)
    if not settings.federation.shared:
        return known
    return tuple(replace(stage, attempts=settings.federation.attempts) for stage in known)


def _rounds(settings: Settings) -> tuple[Stage, ...]:
    privacy, private = settings.privacy, settings.private
    rate = privacy.learning_rate
    generator = Stage(
        GENERATOR,
        settings.rounds,
        privacy.generator_steps if private else settings.generator.local_steps,
        rate if private else settings.generator.learning_rate,
    )
    segmenter = Stage(
        SEGMENTER,
        settings.segmenter.rounds,
        privacy.segmenter_steps if private else settings.segmenter.local_steps,
        rate if private else settings.segmenter.learning_rate,
    )
    masks = segmenter.rounds and settings.data.mask_classes
    return tuple(stage for stage, runs in ((generator, generator.rounds), (segmenter, masks)) if runs)


def stage_named(settings: Settings, name: str) -> Stage:
    return next(stage for stage in stages(settings) if stage.name == name)


def noise_multipliers(settings: Settings) -> dict[str, float]:
    """The sigma of each stage; together they keep the whole run within (epsilon, delta); all 0 without privacy.

    The statistics' is calibrated to their share of epsilon alone; one sigma then serves all rounds, beside it.
    """
    known = [stage.name for stage in stages(settings)]
    if not settings.private:
        return dict.fromkeys(known, 0.0)
    privacy, share = settings.privacy, settings.statistics.share
    calibrate = skellam.calibrate if settings.federation.shared else accountant.calibrate
    found: dict[str, float] = {}
    fixed: accountant.Parts = ()
    if share:
        releases = stage_named(settings, STATISTICS).total_steps
        found[STATISTICS] = calibrate(((1.0, releases),), epsilon=share * privacy.epsilon, delta=privacy.delta)
        fixed = ((1.0, found[STATISTICS], releases),)
    rounds = [stage for stage in stages(settings) if stage.name != STATISTICS]
    if rounds:
        parts = tuple((privacy.sample_rate, stage.total_steps) for stage in rounds)
        noise = calibrate(parts, epsilon=privacy.epsilon, delta=privacy.delta, fixed=fixed)
        found |= {stage.name: noise for stage in rounds}
    return found


def noise_multiplier(settings: Settings) -> float:
    """The one sigma of all rounds; 0 without privacy, or where there are none."""
    return of_rounds(noise_multipliers(settings))


def of_rounds(noise: Mapping[str, float]) -> float:
    """The one sigma of all rounds, from those by stage; 0 where there are none."""
    return next((sigma for name, sigma in noise.items() if name != STATISTICS), 0.0)


def shared_noise(settings: Settings, sites: int) -> SharedNoise | None:
    """How so many sites share their noise, as the study has it; None where each adds its own."""
    asked = settings.federation
    if not asked.shared:
        return None
    shared = SharedNoise.of(sites, colluders=asked.colluders, threshold=asked.threshold)
    shared.require_hidden(masked=asked.masks)
    return shared


def plan(
    settings: Settings,
    *,
    noise: float,
    patients: int,
    labelled: int,
    statistics_noise: float = 0.0,
    shared: SharedNoise | None = None,
) -> Plan:
    """The plan a site fixes in its ledger before the first event; `patients` and `labelled` are public counts."""
    counts = {GENERATOR: patients, SEGMENTER: labelled}
    return Plan(
        stages=tuple(
            _statistics(stage, statistics_noise, patients)
            if stage.name == STATISTICS
            else StagePlan(
                name=stage.name,
                sample_rate=settings.privacy.sample_rate,
                noise_multiplier=noise,
                clip_norm=settings.privacy.clip_norm,
                steps=stage.total_steps,
                denominator_patients=max(1, counts[stage.name]),
            )
            for stage in stages(settings)
        ),
        delta=settings.privacy.delta,
        shared=shared,
    )


def _statistics(stage: Stage, noise: float, patients: int) -> StagePlan:
    """Steps over all patients, of vectors that a public scale brings to a norm of about 1."""
    return StagePlan(
        name=STATISTICS,
        sample_rate=1.0,
        noise_multiplier=noise,
        clip_norm=STATISTICS_CLIP,
        steps=stage.total_steps,
        denominator_patients=patients,
    )


def check_claim(settings: Settings, agreed: Plan) -> None:
    """Hold the noise that came with a request against what the same request promises; noise is the server's word.

    **Raises** `PolicyError` if the plan, whole schedule and all stages, costs more than the study's own epsilon.
    """
    try:
        agreed.require_within(settings.privacy.epsilon)
    except BudgetError as error:
        raise PolicyError(f"the request's noise doesn't keep the epsilon that it claims: {error}") from error


def largest_layer(settings: Settings, images: int) -> int:
    """Numbers in the widest layer's output for one patient's rows, at full size: what memory goes by."""
    found = _widest_of_family(settings)
    if any(stage.name == SEGMENTER for stage in stages(settings)):  # a UNet on pixels, whatever the generator is
        found = max(found, _widest_of_unet(settings, settings.data.size, settings.generator.unshuffle))
    return settings.privacy.noise_draws * images * found


def _widest_of_family(settings: Settings) -> int:
    network, size = settings.generator, settings.data.size
    if network.family in ("vae", "gan"):
        from fedmedgen.models.code_networks import padded  # a policy is read without torch

        height, width = padded(size)
        return height * width * network.width // 4
    if network.family == "dit":
        tokens: int = math.prod(math.ceil(side / network.patch) for side in size)
        return tokens * max(4 * network.width, network.heads * tokens)
    if network.family == "latent":
        shrunk = 2 ** (len(settings.autoencoder.channels) - 1)
        height, width = (math.ceil(side / shrunk) for side in size)
        encoder: int = height * width * shrunk**2 * max(settings.autoencoder.channels, default=0)
        return max(encoder, _widest_of_unet(settings, (height, width), 1))
    return _widest_of_unet(settings, size, network.unshuffle)


def _widest_of_unet(settings: Settings, size: tuple[int, int], unshuffle: int) -> int:
    """On the way up a level reads its own channels and those of a level beside it."""
    channels = settings.generator.channels
    fold: int = unshuffle * 2 ** max(0, len(channels) - 1)  # sides are padded to a multiple of it
    height, width = (math.ceil(side / fold) * fold // unshuffle for side in size)
    found = 0
    for level, own in enumerate(channels):
        above, below = channels[max(0, level - 1)], channels[min(level + 1, len(channels) - 1)]
        found = max(found, (height >> level) * (width >> level) * (max(own, below) + max(own, above)))
    return found


def rounded_up(count: int) -> int:
    """A public count for the patients of a simulated site: the next multiple of 10. Real sites write theirs by hand."""
    return 10 * math.ceil(count / 10)
