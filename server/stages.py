"""The stages of a study, in order.

Data, join, prior, statistics, curriculum, generator, segmenter, emission, evaluation, report.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from flwr.serverapp import Grid

from fedmedgen.data.cases import Case, CaseSet
from fedmedgen.data.partition import held
from fedmedgen.federation import local_round, plan
from fedmedgen.federation.described import require_feasible
from fedmedgen.federation.local_statistics import as_released
from fedmedgen.models.adapters import merge
from fedmedgen.models.denoiser import Denoiser
from fedmedgen.models.generators import Generator
from fedmedgen.models.generators import Trained as Network
from fedmedgen.models.latent import LatentDenoiser
from fedmedgen.models.moments import MomentsGenerator
from fedmedgen.models.segmenter import Segmenter
from fedmedgen.settings import Settings
from server.autoencoder import fit_autoencoder
from server.curriculum import pretrain, teach
from server.decoder import at_the_end, follow_shares, server_part
from server.finishing import drawn_from, emit_set, evaluate_set, save_models, snapshot_ledgers, write_report
from server.joining import join, newcomers
from server.prior import as_images, public_cases
from server.results import assemble
from server.rounds import Rounds, run_stage
from server.run_store import RunStore
from server.shared_steps import run_shared_stage
from server.statistics import class_shares, facts_of, generator_of, refine, release

logger = logging.getLogger(__name__)


@dataclass
class Study:
    """What a running study knows; in a deployment `parts`, `test` and `loaded` stay empty."""

    store: RunStore
    known: Callable[[], Mapping[int, str]] | None = None
    loaded: CaseSet | None = None
    parts: Mapping[str, CaseSet] = field(default_factory=dict)
    test: CaseSet | None = None
    stage_seconds: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    parameters: int | None = None  # numbers in the generator

    @property
    def settings(self) -> Settings:
        return self.store.settings

    @property
    def known_now(self) -> Mapping[int, str] | None:
        """Which node is which site, as the server has it at this moment; nothing in a simulation."""
        return self.known() if self.known else None

    @contextmanager
    def timed(self, stage: str) -> Any:
        start = time.monotonic()
        self.store.report_progress(stage=stage, round=0, rounds=0, seconds=0)
        yield
        self.stage_seconds[stage] = round(time.monotonic() - start, 2)


@dataclass(frozen=True)
class Trained:
    """What a study has learned; `cheap` is the generator from the statistics, where it isn't the study's own."""

    generator: Generator
    segmenter: Segmenter | None = None
    cheap: MomentsGenerator | None = None


def run_study(grid: Grid, store: RunStore, known: Callable[[], Mapping[int, str]] | None = None) -> None:
    """Run every stage that is left; the result file says how it ended, whatever happens.

    `known` says which node is which site, where a deployment knows: none can then pass for another. It is asked anew
    before each round, for sites may be added to a study that runs.

    **Raises** what stopped the study, after result.json has its reason.
    """
    study = Study(store, known=known)
    rounds: Rounds | None = None
    metrics = study.metrics
    try:
        with study.timed("data"):
            read_data(study)
        require_feasible(study.settings)
        with study.timed("join"):
            rounds = begin(grid, study)
        trained = train(grid, study, rounds)
        study.parameters = sum(value.numel() for value in trained.generator.parameters())
        torch.set_num_threads(study.settings.runtime.server_threads)  # sites in this process have set theirs
        save_models(study.store, rounds, trained.generator, trained.segmenter, trained.cheap)
        snapshot_ledgers(study.store, rounds)
        with study.timed("emission"):
            synthetic = emit_set(study.store, rounds, trained.generator)
        if study.settings.evaluation.enabled and study.settings.simulated:
            with study.timed("evaluation"):
                cheap = None if trained.cheap is None else drawn_from(study.store, trained.cheap)
                metrics |= evaluate_set(study.store, synthetic, study.parts, study.test, trained.segmenter, cheap)
    except BaseException as error:
        words = str(error) or type(error).__name__
        store.write_result(assemble(study, rounds, metrics, status="failed", reason=words))
        store.report_progress(stage="failed", reason=words)
        raise
    store.write_result(assemble(study, rounds, metrics, status="completed", reason=""))
    write_report(store)
    store.report_progress(stage="completed", round=0, rounds=0, seconds=round(rounds.seconds, 1))


def read_data(study: Study) -> None:
    """In a simulation: all cases, each site's share, the held-out test set, and the classes that were found."""
    settings = study.settings
    if not settings.simulated:
        return
    study.loaded = held(settings.data, settings.seed).loaded
    study.test = study.loaded.of_split("test")
    found = replace(settings.data, classes=study.loaded.classes)
    study.store.settings = replace(settings, data=found)
    study.store.write_settings()
    study.parts = held(found, settings.seed).parts


def begin(grid: Grid, study: Study) -> Rounds:
    """The members and the noise of all stages; rows of an interrupted run are taken up again."""
    settings = study.settings
    wanted = len(study.parts) or settings.federation.min_sites
    members = join(grid, settings, sites=wanted, known=study.known_now)
    noise = plan.noise_multipliers(settings)
    agreed = None
    if settings.private:
        first = members[0]
        of_stage = {"noise": plan.of_rounds(noise), "statistics_noise": noise.get(plan.STATISTICS, 0.0)}
        shared = plan.shared_noise(settings, len(members))
        agreed = plan.plan(settings, **of_stage, patients=first.patients, labelled=first.labelled, shared=shared)
    rounds = Rounds(study.store, members, noise, agreed)
    if not settings.simulated:
        rounds.find_newcomers = lambda there: newcomers(grid, settings, there, study.known_now)
    latest = study.store.latest()
    if latest is not None:
        rounds.rows, rounds.seconds_before = latest.rows, latest.seconds
    rounds.remember()
    return rounds


def train(grid: Grid, study: Study, rounds: Rounds) -> Trained:
    """The stages of learning that are left, each starting from what the one before it learned."""
    settings, store = study.settings, study.store
    public = _public(study)
    cheap = _cheap(grid, study, rounds, public)
    if cheap is not None and settings.generator.family == "moments":
        return Trained(cheap)
    network = prepared(study, public, cheap)
    initial, part = local_round.trainable_arrays(network), server_part(settings, network)
    stages = {stage.name: stage for stage in plan.stages(settings)}
    finished = store.latest_of(plan.SEGMENTER)
    if finished is not None:
        generator = finished.groups["generator"]
        part.restore(finished.groups)
    elif plan.GENERATOR in stages:
        with study.timed(plan.GENERATOR):
            latest = store.latest_of(plan.GENERATOR)
            if settings.federation.shared:
                generator = run_shared_stage(grid, rounds, stages[plan.GENERATOR], initial, {}, latest)
            else:
                generator = run_stage(grid, rounds, stages[plan.GENERATOR], initial, {}, latest, part=part)
    else:
        generator = initial
    local_round.load_public(network, at_the_end(part))
    local_round.load_arrays(network, generator)
    if isinstance(network, Denoiser):
        merge(network.unet)
    if plan.SEGMENTER not in stages:
        return Trained(network, cheap=cheap)
    segmenter = local_round.segmenter_of(network, settings)
    with study.timed(plan.SEGMENTER):
        first, latest = local_round.trainable_arrays(segmenter), store.latest_of(plan.SEGMENTER)
        kept = {"generator": generator, **part.groups()}
        arrays = run_stage(grid, rounds, stages[plan.SEGMENTER], first, kept, latest)
    local_round.load_arrays(segmenter, arrays)
    return Trained(network, segmenter, cheap)


def prepared(study: Study, public: Sequence[Case], cheap: MomentsGenerator | None) -> Network:
    """The generator as the first round finds it: taught at the server, then split in what trains and what is public."""
    settings, store = study.settings, study.store
    network = local_round.build_whole(settings)
    torch.set_num_threads(settings.runtime.server_threads)
    if isinstance(network, LatentDenoiser):
        with study.timed("autoencoder"):
            fit_autoencoder(store, network, as_images(settings, public))
    if cheap is not None:
        follow_shares(network, class_shares(store))
    if settings.prior.steps:
        with study.timed("pretraining"):
            pretrain(store, network, public)
    if cheap is not None and settings.curriculum.steps:
        with study.timed("curriculum"):
            teach(store, network, cheap)
    return local_round.adapted(network, settings)


def _public(study: Study) -> list[Case]:
    """The public cases, where a stage of the study uses any."""
    settings = study.settings
    if not (settings.statistics.share or settings.prior.steps or settings.generator.family == "latent"):
        return []
    with study.timed("prior"):
        return public_cases(settings, study.loaded)


def _cheap(grid: Grid, study: Study, rounds: Rounds, cases: Sequence[Case]) -> MomentsGenerator | None:
    """The generator that the statistics alone make; None where the study has none."""
    settings = study.settings
    if not settings.statistics.share:
        return None
    public = as_released(settings, cases)
    with study.timed(plan.STATISTICS):
        released = release(grid, rounds, public)
        torch.set_num_threads(settings.runtime.server_threads)
        study.metrics["statistics"] = facts_of(rounds, released)
        return refine(grid, rounds, generator_of(settings, released, public))
