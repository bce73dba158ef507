"""A GAN's private round: patients reach the critic through the release alone, and drawn images beside it."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from fedmedgen.composition import compose
from fedmedgen.data.cases import Case, CaseSet
from fedmedgen.federation import local_round
from fedmedgen.federation.local_round import LocalRound
from fedmedgen.federation.plan import GENERATOR, Stage
from fedmedgen.privacy.mechanism import StagePlan
from fedmedgen.privacy.randomness import Stream
from fedmedgen.settings import Settings

CLIP, DECLARED, PATIENTS = 0.05, 10, 6
WORDS = ["study=demo", "generator=gan", "data.size=[8,8]", "data.mask_classes=[]", "generator.with_masks=false",
         "generator.channels=[4,4]", "generator.width=16", "generator.norm_groups=2", "generator.code=4",
         "generator.batch_size=5", "segmenter.rounds=0"]  # fmt: skip


def settings(engine: str = "reference") -> Settings:
    return compose([*WORDS, f"privacy.engine={engine}"])


def people(count: int) -> CaseSet:
    draw = np.random.default_rng(0)
    images = draw.uniform(-1, 1, (PATIENTS, 1, 8, 8)).astype(np.float32)
    cases = [Case(image=image, name=str(n), label=n % 3, patient=f"p{n}") for n, image in enumerate(images)]
    return CaseSet(tuple(cases[:count]), classes=("normal", "opacity", "nodule"))


def run(asked: Settings, cases: CaseSet, seed: int = 0) -> local_round.LocalResult:
    """One step in which all patients take part, with hardly any noise."""
    stage = Stage(GENERATOR, 1, 1, 1e-3)
    mechanism = StagePlan(
        name=GENERATOR, sample_rate=1.0, noise_multiplier=1e-9, clip_norm=CLIP, steps=1, denominator_patients=DECLARED
    )
    model = local_round.build_generator(asked)
    arrays, public = local_round.trainable_arrays(model), local_round.public_arrays(model)
    asked_for = LocalRound(asked, stage, 1, mechanism, public=public)
    return local_round.run(asked_for, arrays, cases, stream=Stream.seeded(seed, "round"))


@pytest.mark.parametrize("engine", ["reference", "opacus"])
def test_one_patient_moves_the_gradient_by_the_clip_over_the_public_number_and_no_more(
    gradients: list[Tensor], engine: str
) -> None:
    for count in range(PATIENTS + 1):
        run(settings(engine), people(count))
    for before, after in pairwise(gradients):
        assert float((after - before).norm()) == pytest.approx(CLIP / DECLARED, rel=1e-3)


def test_drawn_images_move_it_alike_whoever_takes_part(gradients: list[Tensor]) -> None:
    run(settings(), people(0))
    run(settings(), people(0), seed=1)
    alone, other = gradients
    assert 0 < float(alone.norm()) <= CLIP * (1 + 1e-6)
    assert not torch.allclose(alone, other)  # drawn anew in each round
    gradients.clear()
    parts = [people(1), people(PATIENTS)]
    for cases in parts:
        run(settings(), cases)
    one, all_of_them = gradients
    for taken, cases in zip((one, all_of_them), parts, strict=True):
        assert float((taken - alone).norm()) <= len(cases) * CLIP / DECLARED * (1 + 1e-3)


def test_only_the_critic_leaves_the_site() -> None:
    result = run(settings(), people(2))
    assert {name.partition(".")[0] for name in result.arrays} == {"reader"}
    assert result.loss is None
