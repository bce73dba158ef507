"""Canaries: what they add to a run is theirs alone, and what is found of them tells their coins where noise lacks."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from fedmedgen.errors import RunError, SettingsError
from fedmedgen.privacy import statistics
from fedmedgen.privacy.canaries import Directions, Planted
from fedmedgen.privacy.canary_record import CanaryRecord
from fedmedgen.privacy.mechanism import StagePlan
from fedmedgen.privacy.randomness import Stream
from simulations import audit_campaign
from simulations.audit_campaign import AUDITED, CLAIM, Cell

SHAPES = [torch.Size([3, 5]), torch.Size([7]), torch.Size([2, 2, 4])]


def plan(noise: float = 1.0, rate: float = 1.0) -> StagePlan:
    return StagePlan(
        name="generator", sample_rate=rate, noise_multiplier=noise, clip_norm=0.5, steps=1, denominator_patients=50
    )


def zeros() -> list[torch.Tensor]:
    return [torch.zeros(shape, dtype=torch.float64) for shape in SHAPES]


@pytest.mark.parametrize("count", [1, 7, 38])
def test_directions_are_orthonormal(count: int) -> None:
    known = Directions(SHAPES, count, seed=1)
    flat = torch.stack([torch.cat([part.flatten() for part in known.one(number, 1.0)]) for number in range(count)])
    assert torch.allclose(flat @ flat.T, torch.eye(count, dtype=torch.float64))
    np.testing.assert_allclose(known.along(known.one(count - 1, 2.0)), [0.0] * (count - 1) + [2.0], atol=1e-12)


def test_more_canaries_than_numbers_are_refused() -> None:
    with pytest.raises(SettingsError, match="plant fewer"):
        Directions(SHAPES, 39, seed=1)


def test_a_stage_too_small_for_all_leaves_some_out_and_says_nothing_of_them() -> None:
    planted = Planted(np.ones(60, bool), seed=1)
    released = statistics.release([], plan(noise=1e-6), Stream.seeded(3), size=38, canaries=planted)
    assert released.shape == (38,)
    assert (planted.scores[:38] > 0).all()
    assert (planted.scores[38:] == 0).all()


def test_each_that_takes_part_adds_the_clip_norm_and_the_others_nothing() -> None:
    planted = Planted(np.array([True, False, True, False]), seed=1)
    total = zeros()
    planted.join(total, plan(), Stream.seeded(0))
    found = Directions(SHAPES, 4, seed=1).along(total)
    np.testing.assert_allclose(found, [0.5, 0.0, 0.5, 0.0], atol=1e-12)
    assert math.isclose(float(torch.cat([part.flatten() for part in total]).norm()), 0.5 * math.sqrt(2))


def test_they_take_the_patients_coins() -> None:
    planted, stream, times = Planted(np.ones(30, bool), seed=1), Stream.seeded(5), np.zeros(30)
    for _ in range(400):
        total = zeros()
        planted.join(total, plan(rate=0.2), stream)
        times += Directions(SHAPES, 30, seed=1).along(total) > 0.1
    assert times.mean() / 400 == pytest.approx(0.2, abs=0.02)
    assert times.std() > 0


def test_a_patient_moves_the_sum_by_her_clip_norm_beside_canaries_too() -> None:
    patients = torch.randn(6, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 9

    def summed(vectors: torch.Tensor) -> torch.Tensor:
        total = statistics.clipped_sum(iter(vectors), 0.5, 40)
        Planted(np.ones(9, bool), seed=2).join([total], plan(), Stream.seeded(7))
        return total

    assert float((summed(patients) - summed(patients[:-1])).norm()) <= 0.5 * (1 + 1e-5)


def test_the_release_without_canaries_is_what_it_was() -> None:
    vectors = [torch.ones(40, dtype=torch.float64)]
    alone = statistics.release(vectors, plan(), Stream.seeded(3))
    none = statistics.release(vectors, plan(), Stream.seeded(3), canaries=None)
    assert torch.equal(alone, none)


def test_the_denominator_never_counts_them() -> None:
    few, many = (Planted(np.ones(count, bool), seed=2) for count in (8, 40))
    for planted in (few, many):
        released = statistics.release([], plan(noise=1e-6), Stream.seeded(3), size=40, canaries=planted)
        directions = Directions([released.shape], len(planted.included), seed=2)
        np.testing.assert_allclose(directions.along([released]), 0.5 / 50, rtol=1e-4)


@pytest.mark.parametrize("audited", AUDITED)
def test_the_bound_stays_below_the_claim_and_above_it_with_a_fault(audited: str) -> None:
    assert audit_campaign.audited(Cell(audited, "none", 1)).epsilon <= CLAIM
    for fault in ("no clip", "a tenth of the noise"):
        assert audit_campaign.audited(Cell(audited, fault, 1)).epsilon > CLAIM


def test_the_campaign_skips_what_is_done_and_prints_its_page(tmp_path: Path) -> None:
    table = audit_campaign.run(tmp_path, seeds=1)
    before = (tmp_path / "audit-campaign.csv").read_text()
    assert len(audit_campaign.run(tmp_path, seeds=1).rows) == len(table.rows) == 9
    assert (tmp_path / "audit-campaign.csv").read_text() == before
    assert "| statistics release | none | 1 |" in (tmp_path / "audit-campaign.md").read_text()


def test_the_record_is_the_owners_alone_and_its_coins_are_tossed_once(tmp_path: Path) -> None:
    record = CanaryRecord.of(tmp_path, "run-1")
    record.plant(run="run-1", kind="directions", count=16, stream=Stream.system())
    before = record.read()
    record.plant(run="run-1", kind="directions", count=16, stream=Stream.system())
    assert record.read() == before
    assert record.path.stat().st_mode & 0o077 == 0
    assert record.path.parent.stat().st_mode & 0o077 == 0
    assert sum(before["included"]) not in (0, 16)


def test_a_request_answered_anew_replaces_its_scores(tmp_path: Path) -> None:
    record = CanaryRecord.of(tmp_path, "run-1")
    record.plant(run="run-1", kind="directions", count=8, stream=Stream.seeded(1))
    assert (record.total() == 0).all()
    record.keep("a", "generator", np.ones(8))
    record.keep("a", "generator", 2 * np.ones(8))
    record.keep("b", "generator", 3 * np.ones(8))
    assert (record.total() == 5).all()


def test_rounds_have_directions_of_their_own(tmp_path: Path) -> None:
    record = CanaryRecord.of(tmp_path, "run-1")
    record.plant(run="run-1", kind="directions", count=8, stream=Stream.seeded(1))
    assert record.planted("generator", 1).seed != record.planted("generator", 2).seed


@pytest.mark.parametrize("text", ["", "{}", '{"count": 3, "included": [1]}', '{"count": 1, "included": [7]}'])
def test_a_changed_record_is_refused(tmp_path: Path, text: str) -> None:
    record = CanaryRecord.of(tmp_path, "run-1")
    record.path.parent.mkdir()
    record.path.write_text(text)
    with pytest.raises(RunError, match="record of the canaries"):
        record.read()


def test_the_record_names_its_run(tmp_path: Path) -> None:
    record = CanaryRecord.of(tmp_path, "run-1")
    record.plant(run="run-1", kind="images", count=8, stream=Stream.seeded(1))
    assert json.loads(record.path.read_text())["run"] == "run-1"
    assert CanaryRecord.of(tmp_path, "run-2").path != record.path
