"""Two claims of one plan, both in the ledger, both capped; and how much noise each site adds."""

import itertools
from pathlib import Path

import pytest

from fedmedgen.errors import BudgetError, SettingsError
from fedmedgen.privacy.budget import Plan
from fedmedgen.privacy.ledger import Ledger, Limit
from fedmedgen.privacy.mechanism import StagePlan
from fedmedgen.privacy.shared_noise import SharedNoise
from fedmedgen.privacy.spending import torn_cost

STAGE = StagePlan(
    name="statistics", sample_rate=1, noise_multiplier=2.0, clip_norm=1, steps=1, denominator_patients=100
)
SHARED = SharedNoise(sites=5, threshold=4, colluders=1)


def test_those_who_finish_and_dont_collude_always_add_all_of_the_noise() -> None:
    for sites, colluders in itertools.product(range(3, 21), range(1, 8)):
        for threshold in range(1, sites + 1):
            if 2 * threshold <= sites + colluders:
                with pytest.raises(SettingsError, match="threshold"):
                    SharedNoise(sites=sites, threshold=threshold, colluders=colluders)
                continue
            shared = SharedNoise(sites=sites, threshold=threshold, colluders=colluders)
            for finished in range(threshold, sites + 1):
                assert (finished - colluders) * shared.share >= 1 - 1e-12


def test_two_sets_of_the_threshold_always_have_an_honest_site_in_common() -> None:
    for sites, colluders in ((3, 1), (4, 1), (5, 2), (7, 1)):
        for threshold in range(1, sites + 1):
            sets = list(itertools.combinations(range(sites), threshold))
            meet = all(set(a) & set(b) - set(range(colluders)) for a in sets for b in sets)
            try:
                SharedNoise(sites=sites, threshold=threshold, colluders=colluders)
            except SettingsError:
                continue
            assert meet


def test_one_site_in_five_may_be_lost_by_rule() -> None:
    found = {sites: SharedNoise.of(sites, colluders=1).threshold for sites in (3, 4, 5, 10, 20)}
    assert found == {3: 3, 4: 4, 5: 4, 10: 8, 20: 16}
    assert SharedNoise.of(10, colluders=5).threshold == 8


def test_the_second_claim_is_that_of_the_sites_own_part_of_the_noise() -> None:
    plan = Plan((STAGE,), 1e-5, SHARED)
    own = StagePlan(**{**STAGE.to_mapping(), "noise_multiplier": 2.0 / 3**0.5})
    alone = SharedNoise(sites=3, threshold=3, colluders=2)  # of whom one is honest: it adds all
    assert plan.epsilon_alone == pytest.approx(Plan((own,), 1e-5, alone).epsilon)
    assert plan.epsilon_alone > plan.epsilon
    assert Plan((STAGE,), 1e-5).epsilon_alone == Plan((STAGE,), 1e-5).epsilon


def test_a_plan_without_shared_noise_is_in_the_ledger_as_it_always_was() -> None:
    assert set(Plan((STAGE,), 1e-5).to_mapping()) == {"stages", "delta"}
    shared = Plan((STAGE,), 1e-5, SHARED)
    assert Plan.from_mapping(shared.to_mapping()) == shared
    assert shared.digest != Plan((STAGE,), 1e-5).digest


def opened(ledger: Ledger, run: str, plan: Plan, limit: Limit) -> None:
    ledger.open_plan(
        run=run, digest=plan.digest, mapping=plan.to_mapping(), epsilon=plan.epsilon, delta=plan.delta, limit=limit,
        alone=plan.epsilon_alone if plan.shared else None,
    )  # fmt: skip


def test_both_claims_are_in_the_ledger_and_both_are_capped_over_a_lifetime(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl", key=bytes(32), head_path=tmp_path / "ledger.head")
    plan = Plan((STAGE,), 1e-5, SHARED)
    limit = Limit(100.0, 1e-3, alone=2.5 * plan.epsilon_alone)
    for run in ("first", "second"):
        opened(ledger, run, plan, limit)
    spent = ledger.spent()
    assert (spent.epsilon, spent.alone) == pytest.approx((2 * plan.epsilon, 2 * plan.epsilon_alone))
    with pytest.raises(BudgetError, match="if all other sites collude"):
        opened(ledger, "third", plan, limit)
    opened(ledger, "own noise", Plan((STAGE,), 1e-5), limit)  # costs the same by both claims
    assert ledger.spent().alone == pytest.approx(2 * plan.epsilon_alone + Plan((STAGE,), 1e-5).epsilon)


def test_without_secure_sums_nothing_is_capped_by_the_second_claim(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl", key=bytes(32), head_path=tmp_path / "ledger.head")
    opened(ledger, "run", Plan((STAGE,), 1e-5), Limit(100.0, 1e-3))
    assert b"alone" not in (tmp_path / "ledger.jsonl").read_bytes()


def test_a_torn_line_whose_second_claim_cant_be_read_costs_all_of_that() -> None:
    start = '{"n":0,"prev":"' + 64 * "0" + '","event":"open","epsilon":2.0,"delta":1e-05,'
    assert "alone" not in torn_cost(start.encode())
    assert "alone" not in torn_cost((start + '"alone":31.').encode())
    assert torn_cost((start + '"alone":31.5,').encode())["alone"] == 31.5
    assert torn_cost((start + '"run":"r",').encode())["alone"] == 2.0
