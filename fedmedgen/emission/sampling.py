"""Synthetic cases drawn from a generator, so many of each class."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from fedmedgen.data.cases import Case, CaseSet
from fedmedgen.errors import SettingsError
from fedmedgen.models import samplers
from fedmedgen.models.denoiser import Denoiser
from fedmedgen.models.generators import Generator
from fedmedgen.schema import nearest
from fedmedgen.seeds import seed_of
from fedmedgen.settings import GeneratorSettings
from fedmedgen.training.rows import decode


@torch.no_grad()
def emit(
    generator: Generator,
    *,
    counts: Mapping[str, int] | int,
    settings: GeneratorSettings,
    batch_size: int = 64,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> CaseSet:
    """So many cases of each class (a plain number is spread evenly), on the generator's device; `progress(done, all)`.

    **Raises** `SettingsError` for an unknown class or a negative count.

    **Guarantee** The noise of a case depends on the seed, its class and its number in it: not on the batch size, nor
    on the other classes' counts (the stochastic sampler's later noise depends on the batch).
    """
    config = generator.config
    wanted = [(name, number) for name, count in label_counts(config.classes, counts).items() for number in range(count)]
    generator.eval()
    cases: list[Case] = []
    for start in range(0, len(wanted), batch_size):
        batch = wanted[start : start + batch_size]
        images, masks = decode(_draw(generator, batch, settings, seed), config.mask_classes)
        for place, (name, _) in enumerate(batch):
            label = config.classes.index(name) if config.classes else None
            mask = None if masks is None else masks[place]
            title = f"synthetic-{len(cases):06d}.png"
            cases.append(Case(images[place], title, label, mask, site="synthetic", split="train"))
        if progress is not None:
            progress(len(cases), len(wanted))
    return CaseSet(tuple(cases), config.classes, config.mask_classes)


def label_counts(classes: Sequence[str], counts: Mapping[str, int] | int) -> dict[str, int]:
    """How many cases of each class; a generator without classes has the one class "".

    **Raises** `SettingsError` for an unknown class or a negative count.
    """
    known = list(classes) or [""]
    if isinstance(counts, int):
        share, rest = divmod(counts, len(known))
        counts = {name: share + (place < rest) for place, name in enumerate(known)}
    for name, count in counts.items():
        if name not in known:
            raise SettingsError(f"unknown class {name!r}{nearest(name, known)}; this generator knows {known}")
        if count < 0:
            raise SettingsError(f"the count of cases must be at least 0; got {count}")
    return {name: counts[name] for name in known if name in counts}


def _draw(generator: Generator, batch: Sequence[tuple[str, int]], settings: GeneratorSettings, seed: int) -> Tensor:
    config, device = generator.config, generator.device
    seeds = [seed_of(seed, "emission", name, number) for name, number in batch]
    labels = torch.tensor([config.classes.index(name) if config.classes else 0 for name, _ in batch], device=device)
    if not isinstance(generator, Denoiser):
        return generator.draw(labels, seeds)
    noise = torch.stack([_noise(generator.noise_shape, own) for own in seeds])
    drawn = samplers.sample(
        samplers.guided(generator, labels, settings.guidance),
        noise.to(device),
        torch.Generator().manual_seed(seed_of(seed, "churn", *batch[0])),
        sampler=settings.sampler,
        steps=settings.sampler_steps,
    )
    return generator.to_images(drawn)


def _noise(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
