"""Who took part is known for good: a site that is away when a run goes on stays in what the run says of itself."""

from pathlib import Path
from typing import Any

import pytest

from fedmedgen.composition import compose
from fedmedgen.errors import RunError
from server.finishing import claim
from server.results import assemble
from server.rounds import Rounds
from server.run_store import RunStore
from server.stages import Study
from server.strategy import Member

NORTH, SOUTH, WEST = (Member(node, site, "patient", 30, 20) for node, site in enumerate(("north", "south", "west")))
ROWS = [
    {"stage": "generator", "round": number, "site": site, "status": "done", "bytes_up": 1, "bytes_down": 1}
    for number in (1, 2)
    for site in ("north", "south", "west")
]


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    words = ["study=demo", "privacy=eps10", "backend=deployment", "data.public=false", f"out={tmp_path / 'run'}"]
    return RunStore.create(compose(words))


def begun(store: RunStore, *members: Member, rows: Any = ()) -> Rounds:
    rounds = Rounds(store, list(members), {}, None, rows=list(rows))
    rounds.remember()
    return rounds


def told(store: RunStore, rounds: Rounds) -> dict[str, Any]:
    return assemble(Study(store), rounds, {}, status="completed", reason="")


def test_a_site_that_is_away_when_the_run_goes_on_stays_in_its_result_and_its_claim(store: RunStore) -> None:
    begun(store, NORTH, SOUTH, WEST)
    rounds = begun(store, NORTH, SOUTH, rows=ROWS)
    found = told(store, rounds)
    assert sorted(found["sites"]) == ["north", "south", "west"]
    assert found["lost_sites"] == {"west": "away when the run went on"}
    assert found["survivors"] == ["north", "south"]
    assert claim(store, rounds)["sites"] == 3


def test_one_that_was_asked_nothing_before_it_left_is_no_part_of_it(store: RunStore) -> None:
    begun(store, NORTH, SOUTH, WEST)
    rounds = begun(store, NORTH, SOUTH, rows=[row for row in ROWS if row["site"] != "west"])
    assert sorted(told(store, rounds)["sites"]) == ["north", "south"]


@pytest.mark.parametrize("weaker", [{"unit": "image"}, {"simulation": True}])
@pytest.mark.parametrize("comes_back", [True, False])
def test_what_a_site_said_weaker_once_stays_said(store: RunStore, weaker: dict[str, Any], comes_back: bool) -> None:
    begun(store, NORTH, Member(**{**vars(WEST), **weaker}))
    for _ in range(2):
        rounds = begun(store, NORTH, *([WEST] if comes_back else []), rows=ROWS)
    found = told(store, rounds)
    assert found["privacy"]["unit"] == weaker.get("unit", "patient")
    assert found["simulation"] is weaker.get("simulation", False)


def test_a_newcomer_is_remembered_too(store: RunStore) -> None:
    rounds = begun(store, NORTH)
    rounds.find_newcomers = lambda _: [WEST]
    assert rounds.newcomers("generator") == [WEST]
    assert [member.site for member in begun(store, NORTH, rows=ROWS).everyone] == ["north", "west"]


def test_a_spoiled_list_of_members_stops_the_run(store: RunStore) -> None:
    (store.folder / "members.json").write_text("{")
    with pytest.raises(RunError, match="is spoiled: restore it"):
        begun(store, NORTH)


def test_data_of_a_deployment_are_public_only_where_its_study_says_so(store: RunStore) -> None:
    assert told(store, begun(store, NORTH))["public_data"] is False  # though data.root, each site's own, is empty
