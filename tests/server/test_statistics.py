"""What the server asks about and makes of the answer: basis, dimension by rule, the cheap generator."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedmedgen.composition import compose
from fedmedgen.errors import RunError, SettingsError
from fedmedgen.federation import plan
from fedmedgen.federation.local_statistics import (
    FREQUENCIES,
    VECTOR,
    as_released,
    layout_of,
    reply_shapes,
    request_shapes,
)
from fedmedgen.models.basis import PAYING_FEATURES, dimension_for
from fedmedgen.models.moments import MomentsGenerator
from fedmedgen.settings import Settings
from server import statistics
from server.prior import public_cases
from server.rounds import Rounds
from server.run_store import Checkpoint, RunStore
from server.statistics import MOST, ask_about, ask_with, facts_of, generator_of, release
from server.strategy import Member

NOBODY: Any = None  # in the place of the messages to sites
MEMBERS = [Member(1, "north", "patient", 600, 600), Member(2, "south", "patient", 400, 400)]


def rounds(folder: Path, *words: str, noise: float = 0.9) -> tuple[Settings, Rounds]:
    study = ["study=demo", "smoke=true", "data.size=[16,16]", "prior.phantoms=40", "statistics.share=0.5", *words]
    settings = compose([*study, f"out={folder}"])
    return settings, Rounds(RunStore(folder, settings, "run-1"), MEMBERS, {plan.STATISTICS: noise}, None)


def shown(settings: Settings) -> torch.Tensor:
    """Public images as the stage has them."""
    return as_released(settings, public_cases(settings))


def test_the_dimension_follows_from_noise_and_public_counts(tmp_path: Path) -> None:
    settings, known = rounds(tmp_path, noise=30.0)
    asked = ask_with(settings, known, shown(settings))
    assert asked["basis.scale"].size == dimension_for(30.0, 1000, 2, 39) < 39
    assert {name: value.shape for name, value in asked.items()} == request_shapes(settings, asked["basis.scale"].size)


@pytest.mark.parametrize(
    ("words", "size"),
    [
        (["statistics.dimension=5"], 5),
        ([], dimension_for(0.9, 1000, 2, 39)),
        (["statistics.basis=cosine"], dimension_for(0.9, 1000, 2, MOST)),
    ],
)
def test_a_dimension_that_is_named_is_taken_and_else_the_rule_serves(
    tmp_path: Path, words: list[str], size: int
) -> None:
    settings, known = rounds(tmp_path, *words)
    assert ask_with(settings, known, shown(settings))["basis.scale"].size == size


def test_principal_components_need_public_images_and_cosines_none(tmp_path: Path) -> None:
    settings, known = rounds(tmp_path, "prior.phantoms=0")
    with pytest.raises(SettingsError, match="needs public images"):
        ask_with(settings, known, shown(settings))
    settings, known = rounds(tmp_path, "prior.phantoms=0", "statistics.basis=cosine", "statistics.dimension=4")
    assert ask_with(settings, known, shown(settings))["basis.components"].shape == (4, 2, 16, 16)


@pytest.mark.parametrize("kind", ["moments", "kernel-mean"])
def test_the_answer_makes_a_generator_of_the_studys_classes_and_masks(tmp_path: Path, kind: str) -> None:
    words = [f"statistics.kind={kind}", "statistics.features=8", "statistics.dimension=4"]
    settings, known = rounds(tmp_path, *words)
    public = shown(settings)
    asked = ask_with(settings, known, public)
    assert (FREQUENCIES in asked) == (kind == "kernel-mean")
    vector = np.random.default_rng(0).normal(0, 0.1, reply_shapes(settings, 4)[VECTOR]).astype(np.float32)
    generator = generator_of(settings, {**asked, VECTOR: vector}, public)
    drawn = generator.draw(torch.tensor([0, 2]), [1, 2])
    assert (generator.config.classes, generator.config.mask_classes) == (
        settings.data.classes,
        settings.data.mask_classes,
    )
    assert (drawn.shape, bool(drawn.isfinite().all())) == ((2, 2, 16, 16), True)
    assert facts_of(known, {**asked, VECTOR: vector}) == {
        "epsilon": None, "rounds": 1, "noise_multiplier": 0.9, "dimension": 4,
        "numbers": layout_of(settings, 4).size, "kind": kind,
    }  # fmt: skip


def cheap(settings: Settings, known: Rounds) -> MomentsGenerator:
    public = shown(settings)
    vector = np.random.default_rng(0).normal(0, 0.1, reply_shapes(settings, 4)[VECTOR]).astype(np.float32)
    return generator_of(settings, {**ask_with(settings, known, public), VECTOR: vector}, public)


QUICK = ("statistics.dimension=4", "statistics.rounds=3", "statistics.networks=1", "statistics.network_steps=2")


def test_the_second_question_is_of_features_as_many_as_noise_and_public_counts_allow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "SAMPLES", 60)
    settings, known = rounds(tmp_path, *QUICK, noise=3.0)
    generator = cheap(settings, known)
    first, same, later = (ask_about(known, generator, number) for number in (2, 2, 3))
    dimension = dimension_for(3.0, 1000, 2, MOST, paying=PAYING_FEATURES)
    assert 1 < dimension < dimension_for(3.0, 1000, 2, MOST)
    assert {name: value.shape for name, value in first.items()} == request_shapes(settings, dimension, 2)
    assert all(np.array_equal(first[name], same[name]) for name in first)
    assert not np.array_equal(first["features.directions"], later["features.directions"])
    assert all(np.isfinite(value).all() for value in first.values())


def test_one_class_leaves_nothing_to_learn_features_from_and_no_site_is_asked(tmp_path: Path) -> None:
    settings, known = rounds(tmp_path, *QUICK, "data.classes=[normal]")
    with pytest.raises(SettingsError, match="at least two classes"):
        release(NOBODY, known, shown(settings))


def test_an_earlier_round_that_is_missing_is_not_taken_from_a_later_one(tmp_path: Path) -> None:
    settings, known = rounds(tmp_path, *QUICK)
    vector = {VECTOR: np.zeros(3, np.float32)}
    known.store.save(Checkpoint(plan.STATISTICS, 2, {"weights": vector, "ema": vector}, [], 0.0))
    with pytest.raises(RunError, match=r"statistics\.safetensors is missing"):
        release(NOBODY, known, shown(settings))
