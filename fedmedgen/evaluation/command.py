"""What `fedmedgen evaluate` asks for, from folders on disk to the dictionary it prints."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml
from PIL import Image

from fedmedgen.data import partition, phantoms, sources
from fedmedgen.data.cases import CaseSet
from fedmedgen.errors import DataError, RunError
from fedmedgen.evaluation.recipe import skipped
from fedmedgen.evaluation.study import TASKS, evaluate
from fedmedgen.settings import DataSettings, Settings
from fedmedgen.training.variation import varied_cases

log = logging.getLogger(__name__)

NO_RUN = "give --run to compare with what the run's prior and sites teach"


@dataclass(frozen=True, kw_only=True)
class Request:
    """The words of the command line; None: as the run says, or the default. `cheap`: of the run's statistics."""

    synthetic: Path
    real: Path
    run: Path | None = None
    task: Literal["classification", "segmentation"] | None = None
    size: tuple[int, ...] | None = None
    mask_classes: tuple[str, ...] | None = None
    seeds: int | None = None
    seed: int | None = None
    cheap: CaseSet | None = None


def measure(request: Request) -> dict[str, Any]:
    """Fidelity and utility of the set, by the run's own settings where a run is given.

    **Raises** `DataError` if either set can't be used; `RunError` if the run folder has no settings.
    """
    settings = _settings(request)
    real = sources.load(settings.data, seed=settings.seed)
    test = real.of_split("test")
    if not len(test):
        raise DataError(f"{request.real}: expected cases with split 'test' to measure on; there are none")
    own = replace(settings.data, root=str(request.synthetic), classes=real.classes, min_patients=1)
    synthetic = sources.load(own, seed=settings.seed)
    sites, prior = {"real": real.of_split("train")}, None
    if request.run is not None:
        sites = partition.partition(real, settings.data, seed=settings.seed)
        classes = settings.evaluation.prior_labels or real.classes
        prior = phantoms.prior(len(synthetic), data=settings.data, classes=classes, seed=settings.seed)
        if settings.prior.varied:
            prior = prior.with_cases(varied_cases(prior.cases, settings.seed))
    tasks = (request.task,) if request.task else TASKS
    found = evaluate(
        synthetic, sites, test, prior, settings.evaluation, settings.seed, tasks=tasks, cheap=request.cheap
    )
    return found if request.run is not None else _without_run(found)


def _settings(request: Request) -> Settings:
    settings = Settings() if request.run is None else of_run(request.run)
    chosen = settings.data if request.run is not None else DataSettings(size=_size(request.synthetic))
    data = replace(
        chosen,
        root=str(request.real),
        size=(request.size[0], request.size[1]) if request.size else chosen.size,
        mask_classes=chosen.mask_classes if request.mask_classes is None else request.mask_classes,
    )
    evaluation = replace(settings.evaluation, seeds=request.seeds or settings.evaluation.seeds)
    seed = settings.seed if request.seed is None else request.seed
    return replace(settings, data=data, evaluation=evaluation, seed=seed)


def of_run(run: Path) -> Settings:
    """The settings that a run folder holds.

    **Raises** `RunError` if it has none.
    """
    file = run / "settings.yaml"
    if not file.is_file():
        raise RunError(f"expected a run folder with settings.yaml; there is none in {run}")
    return Settings.from_mapping(yaml.safe_load(file.read_text(encoding="utf-8")))


def _size(synthetic: Path) -> tuple[int, int]:
    """Rows and columns of the set's first picture; the default size where it has none."""
    for picture in sorted((synthetic / "images").glob("*.png")):
        with Image.open(picture) as opened:
            return opened.height, opened.width
    height, width = DataSettings().size
    return height, width


def _without_run(found: Mapping[str, Any]) -> dict[str, Any]:
    """Without a run nothing is known of sites or of a prior: say how to get them."""
    rows = {"prior": skipped(NO_RUN), "best_site": skipped(NO_RUN)}
    return {name: part | rows if "trtr" in part else part for name, part in found.items()}
