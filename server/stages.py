"""The stages of a study, in order: data, join, generator, segmenter, emission, evaluation, report."""

import logging
import time
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from flwr.serverapp import Grid

from fedmedgen.data.cases import CaseSet
from fedmedgen.data.partition import held
from fedmedgen.federation import local_round, plan
from fedmedgen.federation.egress import Arrays
from fedmedgen.models.denoiser import Denoiser
from fedmedgen.models.segmenter import Segmenter
from fedmedgen.settings import Settings
from server.finishing import emit_set, evaluate_set, save_models, snapshot_ledgers, write_report
from server.joining import join
from server.results import assemble
from server.rounds import Rounds, run_stage
from server.run_store import Checkpoint, RunStore

logger = logging.getLogger(__name__)


@dataclass
class Study:
    """What a running study knows; in a deployment `parts`, `test` and `loaded` stay empty."""

    store: RunStore
    loaded: CaseSet | None = None
    parts: Mapping[str, CaseSet] = field(default_factory=dict)
    test: CaseSet | None = None
    stage_seconds: dict[str, float] = field(default_factory=dict)

    @property
    def settings(self) -> Settings:
        return self.store.settings

    @contextmanager
    def timed(self, stage: str) -> Any:
        start = time.monotonic()
        self.store.report_progress(stage=stage, round=0, rounds=0, seconds=0)
        yield
        self.stage_seconds[stage] = round(time.monotonic() - start, 2)


def run_study(grid: Grid, store: RunStore) -> None:
    """Run every stage that is left; the result file says how it ended, whatever happens.

    **Raises** what stopped the study, after result.json has its reason.
    """
    study = Study(store)
    rounds: Rounds | None = None
    metrics: dict[str, Any] = {}
    try:
        with study.timed("data"):
            read_data(study)
        with study.timed("join"):
            rounds = begin(grid, study)
        denoiser, segmenter = train(grid, study, rounds)
        torch.set_num_threads(study.settings.runtime.server_threads)  # sites in this process have set theirs
        save_models(study.store, rounds, denoiser, segmenter)
        snapshot_ledgers(study.store, rounds)
        with study.timed("emission"):
            synthetic = emit_set(study.store, rounds, denoiser)
        if study.settings.evaluation.enabled and study.settings.simulated:
            with study.timed("evaluation"):
                metrics = evaluate_set(study.store, synthetic, study.parts, study.test, segmenter)
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
    """The members and the noise that all stages share; rows of an interrupted run are taken up again."""
    settings = study.settings
    wanted = len(study.parts) or settings.federation.min_sites
    members = join(grid, settings, sites=wanted)
    noise = plan.noise_multiplier(settings)
    agreed = None
    if settings.private:
        agreed = plan.plan(settings, noise=noise, patients=members[0].patients, labelled=members[0].labelled)
    rounds = Rounds(study.store, members, noise, agreed)
    latest = study.store.latest()
    if latest is not None:
        rounds.rows, rounds.seconds_before = latest.rows, latest.seconds
    return rounds


def train(grid: Grid, study: Study, rounds: Rounds) -> tuple[Denoiser, Segmenter | None]:
    """The rounds of all training stages that are left, each starting from what the one before it learned."""
    settings = study.settings
    latest = study.store.latest()
    denoiser = local_round.build_model(settings, plan.GENERATOR)
    assert isinstance(denoiser, Denoiser)
    stages = {stage.name: stage for stage in plan.stages(settings)}
    if latest is not None and latest.stage == plan.SEGMENTER:
        generator = latest.groups["generator"]
    else:
        with study.timed(plan.GENERATOR):
            initial = local_round.trainable_arrays(denoiser)
            generator = run_stage(grid, rounds, stages[plan.GENERATOR], initial, {}, latest)
    local_round.load_arrays(denoiser, generator)
    if plan.SEGMENTER not in stages:
        return denoiser, None
    segmenter = local_round.segmenter_of(denoiser, settings)
    with study.timed(plan.SEGMENTER):
        arrays = _segmenter_rounds(grid, rounds, stages[plan.SEGMENTER], segmenter, generator)
    local_round.load_arrays(segmenter, arrays)
    return denoiser, segmenter


def _segmenter_rounds(grid: Grid, rounds: Rounds, stage: plan.Stage, segmenter: Segmenter, generator: Arrays) -> Arrays:
    latest: Checkpoint | None = rounds.store.latest()
    if latest is not None and latest.stage != plan.SEGMENTER:
        latest = None
    initial = local_round.trainable_arrays(segmenter)
    return run_stage(grid, rounds, stage, initial, {"generator": generator}, latest)
