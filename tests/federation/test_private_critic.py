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
from fedmedgen.models.one_step import OneStepGenerator
from fedmedgen.privacy.mechanism import StagePlan
from fedmedgen.privacy.randomness import Stream
from fedmedgen.settings import Settings
from fedmedgen.training.adversarial import fake_loss, fake_rows, real_loss

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


def test_drawn_images_have_the_classes_of_the_release_or_else_all_alike() -> None:
    model = local_round.build_generator(settings())
    assert isinstance(model, OneStepGenerator)
    noise = torch.Generator().manual_seed(0)
    even = torch.bincount(fake_rows(model, 9000, noise)["label"], minlength=3) / 9000
    assert even.tolist() == pytest.approx([1 / 3] * 3, abs=0.02)
    model.class_shares.data.copy_(torch.tensor([0.7, 0.3, -5.0]))  # a server may send anything
    found = torch.bincount(fake_rows(model, 9000, noise)["label"], minlength=3) / 9000
    assert found.tolist() == pytest.approx([0.7, 0.3, 0.0], abs=0.02)


def test_a_critic_finds_nothing_where_there_is_nothing_to_find_though_a_class_is_rare() -> None:
    """Real images that the decoder itself drew, one class in ten: the score must not be that of the label."""
    model = local_round.build_generator(settings())
    assert isinstance(model, OneStepGenerator)
    shares = torch.tensor([0.6, 0.3, 0.1])
    noise, optimiser = torch.Generator().manual_seed(1), torch.optim.Adam(model.reader.parameters(), lr=3e-3)
    scores = {}
    for known in (True, False):
        model.class_shares.data.copy_(shares if known else torch.full((3,), 1 / 3))
        for _ in range(150):
            rows = fake_rows(model, 512, noise)
            labels = torch.multinomial(shares, 512, replacement=True, generator=noise)
            with torch.no_grad():
                x = model.decoder(torch.randn(512, 4, generator=noise), labels)
            real = real_loss(model, {"x": x, "label": labels, "weight": torch.ones_like(x)})
            optimiser.zero_grad()
            torch.autograd.backward((real + fake_loss(model, rows)).mean())
            optimiser.step()
        with torch.no_grad():
            drawn = model.decoder(torch.randn(64, 4, generator=noise), torch.arange(64) % 3)
            read = model.reader(drawn, torch.arange(64) % 3)
        means = [float(read[number::3].mean()) for number in range(3)]
        scores[known] = max(means) - min(means)
    assert scores[True] < 1.0 < 1.8 < scores[False]  # with three seeds .16 to .54, and 2.0 each time


def test_a_patient_of_no_known_class_teaches_the_critic_nothing() -> None:
    model = local_round.build_generator(settings())
    rows = {"x": torch.zeros(2, 1, 8, 8), "label": torch.tensor([1, 3]), "weight": torch.ones(2, 1, 8, 8)}
    known, unknown = real_loss(model, rows).tolist()
    assert known > 0
    assert unknown == 0
