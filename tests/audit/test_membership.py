"""Attacks: an overfitted generator gives its members away, a fresh one doesn't."""

from unittest.mock import Mock

import numpy as np
import pytest
import torch

from fedmedgen.audit import membership
from fedmedgen.audit.copies import copies
from fedmedgen.audit.membership import attacks, clopper_pearson, compare, summary
from fedmedgen.composition import compose
from fedmedgen.data import phantoms
from fedmedgen.data.cases import Case, CaseSet
from fedmedgen.models.denoiser import Denoiser, build_denoiser
from fedmedgen.models.moments import MomentsGenerator
from fedmedgen.models.one_step import build_one_step
from fedmedgen.settings import GeneratorSettings, Settings
from fedmedgen.training.fit import Schedule, fit_ordinary
from fedmedgen.training.losses import diffusion_loss, elbo_loss
from fedmedgen.training.rows import coded_rows, diffusion_rows, encode

SMALL = GeneratorSettings(
    channels=(16, 16), attention=(False, False), unshuffle=2, with_masks=False, label_dropout=0.0, noise_mean=-1.0
)


def noise_cases(count: int, seed: int) -> CaseSet:
    draw = np.random.default_rng(seed)
    images = np.tanh(draw.standard_normal((count, 1, 16, 16))).astype(np.float32)
    made = [Case(image=image, name=str(n), label=0, patient=f"{seed}-{n}") for n, image in enumerate(images)]
    return CaseSet(tuple(made), ("normal",))


def trained(cases: CaseSet, steps: int) -> Denoiser:
    model = build_denoiser(SMALL, num_classes=1, num_masks=0, size=(16, 16), seed=0)
    generator = torch.Generator().manual_seed(0)
    fit_ordinary(
        model, diffusion_loss, lambda g: diffusion_rows(cases.cases, 4, g, SMALL, num_classes=1),
        schedule=Schedule(learning_rate=3e-3, first_step=0, steps=steps, total_steps=steps), generator=generator,
    )  # fmt: skip
    return model.eval()


def test_attacks_succeed_on_a_generator_that_knows_its_images_by_heart() -> None:
    members, others = noise_cases(6, 1), noise_cases(40, 2)
    model = trained(members, 250)
    found = summary(attacks(model, members, Settings()), attacks(model, others, Settings()))
    assert found["loss"]["auc"] > 0.9
    assert found["SimA"]["auc"] > 0.9
    assert found["loss"]["ci"]["auc"][0] > 0.8


def test_attacks_fail_on_a_generator_that_saw_nobody() -> None:
    model = build_denoiser(SMALL, num_classes=1, num_masks=0, size=(16, 16), seed=0).eval()
    found = summary(attacks(model, noise_cases(60, 1), Settings()), attacks(model, noise_cases(60, 2), Settings()))
    assert set(found) >= {"loss", "PIA", "SimA"}
    assert all(0.3 < row["auc"] < 0.7 for row in found.values())


def test_a_rate_at_few_false_alarms_needs_a_thousand_held_out() -> None:
    draw = np.random.default_rng(0)
    few = compare(draw.standard_normal(500) + 1, draw.standard_normal(999))
    assert few["tpr_at_1pct_fpr"] is None
    many = compare(draw.standard_normal(2000) + 1, draw.standard_normal(1000))
    low, high = many["ci"]["tpr_at_1pct_fpr"]
    assert low < many["tpr_at_1pct_fpr"] < high
    assert many["tpr_at_1pct_fpr"] == pytest.approx(0.092, abs=0.06)  # 1 - Phi(2.326 - 1)
    assert many["tpr_at_01pct_fpr"] is None
    most = compare(draw.standard_normal(2000) + 1, draw.standard_normal(10_000))
    assert most["tpr_at_01pct_fpr"] == pytest.approx(0.0183, abs=0.015)  # 1 - Phi(3.090 - 1)


def test_the_interval_of_a_rate_covers_the_truth_although_the_threshold_is_measured_too() -> None:
    draw, covered = np.random.default_rng(0), 0
    for number in range(20):
        found = compare(draw.standard_normal(4000) + 1, draw.standard_normal(1000), seed=number)
        low, high = found["ci"]["tpr_at_1pct_fpr"]
        covered += low <= 0.0924 <= high
    assert covered >= 17


def test_the_interval_of_an_auc_covers_the_truth() -> None:
    draw, covered = np.random.default_rng(0), 0
    truth = 0.7602  # Phi(1 / sqrt 2)
    for number in range(20):
        low, high = compare(draw.standard_normal(150) + 1, draw.standard_normal(150), seed=number)["ci"]["auc"]
        covered += low <= truth <= high
    assert covered >= 16


def test_scores_that_are_not_finite_are_said_to_be_none() -> None:
    assert "skipped" in compare(np.array([np.nan]), np.array([1.0]))


@pytest.mark.parametrize(("hits", "count", "interval"), [(0, 10, (0.0, 0.3085)), (10, 10, (0.6915, 1.0))])
def test_an_exact_interval_at_the_ends(hits: int, count: int, interval: tuple[float, float]) -> None:
    assert clopper_pearson(hits, count) == pytest.approx(interval, abs=1e-4)


def test_a_set_that_repeats_its_patients_is_seen_and_one_that_does_not_is_not() -> None:
    members, others, fresh = noise_cases(24, 1), noise_cases(24, 2), noise_cases(24, 3)
    assert copies(members, members, others, seed=0)["nearer_to_train"] == 1
    found = copies(fresh, members, others, seed=0)
    low, high = found["chance"]
    assert low <= found["nearer_to_train"] <= high
    assert "skipped" in copies(fresh, members, fresh.with_cases([]), seed=0)


def test_a_vae_that_knows_its_images_by_heart_gives_them_away_and_a_fresh_one_nobody() -> None:
    small = GeneratorSettings(family="vae", with_masks=False, width=32, norm_groups=4, code=16, label_dropout=0.0)
    members, others = noise_cases(6, 1), noise_cases(40, 2)
    model = build_one_step(small, num_classes=1, num_masks=0, size=(16, 16), seed=0).eval()
    fresh = summary(attacks(model, members, Settings()), attacks(model, others, Settings()))
    fit_ordinary(
        model, elbo_loss, lambda g: coded_rows(members.cases, 1, g, small, num_classes=1),
        schedule=Schedule(learning_rate=5e-3, first_step=0, steps=120, total_steps=120),
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert fresh["loss"]["auc"] < 0.8
    assert summary(attacks(model.eval(), members, Settings()), attacks(model, others, Settings()))["loss"]["auc"] > 0.9


def test_a_release_is_attacked_by_images_as_it_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks in another slope or weight than the release's would blind the attack."""
    words = ["data.size=[16,16]", "statistics.mask_slope=4", "statistics.mask_weight=3"]
    settings = compose(["study=demo", "smoke=true", *words])
    names = settings.data.mask_classes
    drawn = phantoms.draw("chest", 4, size=(16, 16), seed=1, classes=settings.data.classes, mask_classes=names)
    cases = CaseSet(tuple(drawn), settings.data.classes, names)
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(membership, "likelihood", lambda _generator, x, _labels: seen.append(x))
    generator = Mock(spec=MomentsGenerator, num_classes=3, config=Mock(mask_classes=names))
    attacks(generator, cases, settings)
    plain = encode(cases.cases, names, slope=4)
    torch.testing.assert_close(seen[0], torch.cat([plain[:, :1], 3 * plain[:, 1:]], dim=1))
