"""A site killed at random moments, and a ledger cut at every byte: no spend is lost, no good chain refused."""

import random
from collections import Counter
from pathlib import Path

import pytest

from simulations import ledger_campaign
from simulations.campaigns import cuts, kills
from simulations.campaigns.victims import Asking

KILLS = {kills.SITE: 12, kills.LEDGER: 6, kills.SHORT: 6, kills.MENDING: 6}


@pytest.fixture(scope="module")
def asking(tmp_path_factory: pytest.TempPathFactory) -> Asking:
    return Asking.prepared(tmp_path_factory.mktemp("campaign"))


@pytest.mark.parametrize("kind", KILLS)
def test_after_every_kill_the_ledger_holds_all_that_the_witness_saw(asking: Asking, kind: str) -> None:
    number = list(KILLS).index(kind)
    rows = kills.life(kind, number, KILLS[kind], asking, random.Random(f"moments of {kind}"))
    assert len(rows) == KILLS[kind]
    assert {name: sum(row[name] for row in rows) for name in kills.FAULTS} == dict.fromkeys(kills.FAULTS, 0)
    assert len({row["doing"] for row in rows}) > 1


@pytest.mark.parametrize("last_two", cuts.LAST_TWO)
def test_cut_at_any_byte_of_its_last_two_lines_a_ledger_costs_enough_or_is_refused(
    tmp_path: Path, last_two: str
) -> None:
    found = cuts.cut(tmp_path, last_two)
    assert found == Counter(cuts=found["cuts"])
    assert found["cuts"] > 600


def test_an_interrupted_campaign_goes_on_after_the_last_life_that_was_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lived: list[int] = []

    def life(kind: str, number: int, count: int, *_: object) -> list[dict[str, object]]:
        if len(lived) == 2:
            raise KeyboardInterrupt
        lived.append(number)
        return [{"life": number, "kill": kill, "kind": kind} for kill in range(count)]

    monkeypatch.setattr(kills, "life", life)
    monkeypatch.setattr(Asking, "prepared", lambda _: None)
    with pytest.raises(KeyboardInterrupt):
        ledger_campaign.campaign(50, 0, tmp_path)
    with (tmp_path / "ledger-campaign.csv").open("a") as file:
        file.write(f"{ledger_campaign.commit()},0,2,0\n")  # a life whose rows were not all written
    lived.clear()
    rows = ledger_campaign.campaign(50, 0, tmp_path)
    assert lived == [2]
    assert [int(row["life"]) for row in rows] == [0] * 20 + [1] * 20 + [2] * 10
