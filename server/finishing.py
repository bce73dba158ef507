"""After the last round: the models saved, the synthetic set emitted, its worth measured, the report drawn."""

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fedmedgen import devices
from fedmedgen.audit.identity import folder_hash
from fedmedgen.data import phantoms
from fedmedgen.data.cases import CaseSet
from fedmedgen.emission.sampling import emit
from fedmedgen.emission.writing import write_set
from fedmedgen.evaluation import segmentation
from fedmedgen.evaluation.recipe import skipped
from fedmedgen.evaluation.study import evaluate
from fedmedgen.models.generators import Generator
from fedmedgen.models.lean import drawing_in
from fedmedgen.models.moments import MomentsGenerator
from fedmedgen.models.saving import save_generator, save_segmenter
from fedmedgen.models.segmenter import Segmenter
from fedmedgen.privacy.budget import Plan
from fedmedgen.privacy.mechanism import StagePlan
from fedmedgen.reporting.report import write_report as draw_report
from fedmedgen.seeds import seed_of
from fedmedgen.training.variation import varied_cases
from server import membership
from server.rounds import Rounds
from server.run_store import RunStore
from server.tracking import write_events

logger = logging.getLogger(__name__)


def save_models(
    store: RunStore,
    rounds: Rounds,
    generator: Generator,
    segmenter: Segmenter | None,
    cheap: MomentsGenerator | None = None,
) -> None:
    """The generators and the segmenter, each with a card that repeats the claim."""
    data = store.settings.data
    card = claim(store, rounds)
    generator.name_classes(data.classes, data.mask_classes)
    save_generator(generator, store.folder / "generator", card=card)
    if cheap is not None:
        save_generator(cheap, store.folder / "cheap", card=card)
    if segmenter is not None:
        segmenter.name_classes(data.mask_classes)
        save_segmenter(segmenter, store.folder / "segmenter", card=card)
    write_events(store.folder / "tensorboard", rounds.rows)


def claim(store: RunStore, rounds: Rounds) -> dict[str, object]:
    """The privacy claim as the cards and the datasheet print it."""
    settings, agreed = store.settings, rounds.agreed
    common: dict[str, object] = {
        "study": settings.study,
        "run": store.run,
        "seed": settings.seed,
        "sites": len(rounds.everyone),
        "rounds": settings.rounds,
        "simulation": rounds.simulation,
    }
    if settings.statistics.share or settings.prior.steps or settings.generator.family == "latent":
        roots = [Path(root).name for root in settings.prior.roots]
        phantoms = [f"{settings.prior.phantoms} phantoms"] if settings.prior.phantoms else []
        common["public images"] = ", ".join(roots + phantoms) or "none"
        if settings.statistics.share and settings.prior.residual and common["public images"] != "none":
            words = "parts of them, recognisable, are in this folder and in what is drawn; no epsilon covers those"
            common["public images"] = f"{common['public images']}: {words}"
    if agreed is None:
        return {**common, "epsilon": None, "privacy": "none: the weights may reveal training images"}
    return {
        **common,
        "epsilon": round(agreed.epsilon, 4),
        "delta": agreed.delta,
        "unit": membership.unit_of(rounds.everyone),
        "neighbouring": "add or remove one unit of one site",
        "mechanism": "; ".join(
            _mechanism(stage, "Skellam" if agreed.shared else "Gaussian") for stage in agreed.stages
        ),
        **_trust(agreed),
    }


def _trust(agreed: Plan) -> dict[str, object]:
    """Whom the claim holds against, and by whose reckoning."""
    if agreed.shared is None:
        return {
            "accountant": "PLD",
            "trusted": "each site trusts itself alone; the server and the other sites may collude",
        }
    return {
        "accountant": "Renyi",
        "trusted": f"{agreed.shared.sites} sites share the noise: the server and {agreed.shared.colluders} of them may "
        "collude; if all others do, only the second epsilon holds",
        "epsilon if all others collude": round(agreed.epsilon_alone, 4),
    }


def _mechanism(stage: StagePlan, noise: str) -> str:
    sampling = "all units" if stage.sample_rate == 1 else f"Poisson sampling at rate {stage.sample_rate:g}"
    return f"{stage.name}: {stage.steps} {noise} steps of noise multiplier {stage.noise_multiplier:.4g}, {sampling}"


def snapshot_ledgers(store: RunStore, rounds: Rounds) -> None:
    """In a simulation whose sites keep their ledgers elsewhere: a copy of each, with its head, in the run folder."""
    root = store.settings.ledger.root
    if not (root and store.settings.simulated and store.settings.private):
        return
    for member in rounds.members:
        for name in ("ledger.jsonl", "ledger.head"):
            target = store.folder / "sites" / member.site / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(Path(root) / member.site / name, target)


def emit_set(store: RunStore, rounds: Rounds, generator: Generator) -> CaseSet:
    """The synthetic set of the study, drawn and written."""
    synthetic = drawn_from(store, generator)
    write_set(synthetic, store.folder / "synthetic", datasheet=claim(store, rounds))
    return synthetic


def drawn_from(store: RunStore, generator: Generator) -> CaseSet:
    """As many cases as the study emits."""
    settings = store.settings
    generator.to(devices.drawing_device(settings))
    return emit(
        drawing_in(generator, settings.emission.precision),
        counts=settings.emission.count,
        settings=settings.generator,
        batch_size=settings.emission.batch_size,
        seed=seed_of(settings.seed, "emission"),
        progress=lambda done, total: store.report_progress(stage="emission", round=done, rounds=total),
    )


def evaluate_set(
    store: RunStore,
    synthetic: CaseSet,
    parts: Mapping[str, CaseSet],
    test: CaseSet | None,
    segmenter: Segmenter | None,
    cheap: CaseSet | None = None,
) -> dict[str, Any]:
    """What the set and the federated segmenter are worth on the held-out cases of a simulation."""
    settings = store.settings
    if test is None or not len(test):
        return {name: skipped("no held-out cases") for name in ("fidelity", "classification", "segmentation")}
    prior = phantoms.prior(
        max(settings.emission.count, 64),
        data=settings.data,
        classes=settings.evaluation.prior_labels or settings.data.classes,
        seed=seed_of(settings.seed, "prior"),
    )
    if settings.prior.varied:
        prior = prior.with_cases(varied_cases(prior.cases, seed_of(settings.seed, "prior varied")))
    metrics = evaluate(
        synthetic,
        parts,
        test,
        prior,
        settings.evaluation,
        settings.seed,
        progress=lambda words: store.report_progress(stage=f"evaluation: {words}"),
        cheap=cheap,
    )
    metrics["set"] = folder_hash(store.folder / "synthetic")
    if segmenter is not None:
        metrics["federated_segmenter"] = segmenter_score(segmenter, test)
    return metrics


@torch.no_grad()
def segmenter_score(segmenter: Segmenter, test: CaseSet) -> dict[str, Any]:
    """Dice and HD95 of the federated segmenter on the held-out cases that have masks."""
    known = test.with_cases([case for case in test if case.mask is not None])
    if not len(known):
        return skipped("no held-out case has a mask")
    segmenter.eval()
    images = torch.from_numpy(known.images())
    logits = torch.cat([segmenter(batch) for batch in torch.split(images, 64)])
    return segmentation.score(list(logits.argmax(1).to(torch.uint8).numpy()), known)


def write_report(store: RunStore) -> None:
    draw_report(store.folder)
