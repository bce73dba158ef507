"""Who may take part: a node that says what can't be used is left out, and stops nobody else."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedmedgen.composition import compose
from fedmedgen.errors import FederationError
from fedmedgen.federation import records
from server.joining import join, known_nodes, newcomers
from server.run_store import RunStore
from server.stages import Study, begin

SETTINGS = compose(["study=demo", "federation.join_seconds=1"])

pytestmark = pytest.mark.usefixtures("identity")


def said(site: str, patients: float = 30.0, labelled: float = 20.0, simulation: str = "yes") -> RecordDict:
    words = {records.SITE: site, records.STATUS: records.DONE, records.UNIT: "patient", records.SIMULATION: simulation}
    figures = {records.PATIENTS: patients, records.LABELLED: labelled}
    return RecordDict({records.CONFIG: ConfigRecord(words), records.METRICS: MetricRecord(figures)})


class Nodes:
    """A grid whose nodes have their introduction ready."""

    def __init__(self, *contents: RecordDict) -> None:
        self.contents = dict(enumerate(contents, 10))

    def get_node_ids(self) -> list[int]:
        return list(self.contents)

    def send_and_receive(self, asked: Iterable[Message], timeout: float) -> list[Message]:
        return [Message(self.contents[message.metadata.dst_node_id], reply_to=message) for message in asked]


def joined(*contents: RecordDict) -> list[str]:
    grid: Any = Nodes(said("b"), *contents, said("a"))
    return [member.site for member in join(grid, SETTINGS, sites=2)]


def with_arrays(stype: str, data: bytes) -> RecordDict:
    content = said("c")
    content["arrays"] = ArrayRecord({"w": Array("float32", (1,), stype, data)})
    return content


@pytest.mark.parametrize(
    "content",
    [
        *[said("c", patients=figure) for figure in (math.inf, math.nan, 0.0, -29.0, 1e18, 1e300, 2.5)],
        *[said("c", labelled=figure) for figure in (-1.0, math.inf, 1e9)],
        *[said(name) for name in ("", " ", "../../etc", "a/b", "<script>", "x" * 65, "a\nb")],
        RecordDict(),
        with_arrays("pickle", b"cos\nsystem\n"),
        with_arrays("numpy.ndarray", b"PK\x03\x04junk"),
    ],
)
def test_an_introduction_that_cannot_be_used_is_left_out(content: RecordDict) -> None:
    assert joined(content) == ["a", "b"]


def test_a_name_that_two_nodes_claim_is_nobodys() -> None:
    assert joined(said("c"), said("c"), said("c")) == ["a", "b"]
    with pytest.raises(FederationError, match="two nodes say that they are a"):
        joined(said("a"))


def test_a_site_whose_policy_is_a_simulations_is_known_as_one() -> None:
    grid: Any = Nodes(said("a", simulation="no"), said("b"))
    assert [member.simulation for member in join(grid, SETTINGS, sites=2)] == [False, True]
    assert np.all([member.patients == 30 for member in join(grid, SETTINGS, sites=2)])


def test_a_node_whose_key_is_another_sites_cannot_pass_for_it() -> None:
    grid: Any = Nodes(said("a"), said("c"), said("b"))
    known = {10: "a", 11: "b", 12: "b"}  # node 11 holds the key of b, and says that it is c
    assert [member.site for member in join(grid, SETTINGS, sites=2, known=known)] == ["a", "b"]
    with pytest.raises(FederationError, match="node 11 says that it is c; its key is of b"):
        join(grid, SETTINGS, sites=3, known=known)
    with pytest.raises(FederationError, match="its key is of None"):
        join(grid, SETTINGS, sites=3, known={})


def test_the_file_of_members_names_each_nodes_site(tmp_path: Path) -> None:
    (tmp_path / "members.json").write_text('{"north": {"node": "7", "key": "abc"}, "south": {"node": "8", "key": ""}}')
    assert known_nodes(tmp_path / "members.json") == {7: "north", 8: "south"}


def test_a_site_that_comes_later_is_found_and_none_takes_a_members_name() -> None:
    grid: Any = Nodes(said("a"), said("b"))
    members = join(grid, SETTINGS, sites=2)
    assert newcomers(grid, SETTINGS, members, None) == []
    grid.contents |= {12: said("c"), 13: said("a"), 14: RecordDict()}
    assert [member.site for member in newcomers(grid, SETTINGS, members, None)] == ["c"]
    assert newcomers(grid, SETTINGS, members, {12: "d"}) == []


def test_why_one_that_came_later_is_left_out_is_said(caplog: pytest.LogCaptureFixture) -> None:
    grid: Any = Nodes(said("a"), said("b"))
    members = join(grid, SETTINGS, sites=2)
    grid.contents |= {12: said("c")}
    assert newcomers(grid, SETTINGS, members, {10: "a", 11: "b", 12: "d"}) == []
    assert "node 12 says that it is c; its key is of d" in caplog.text


def test_a_site_that_is_registered_while_a_study_runs_joins_its_next_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid: Any = Nodes(said("a", simulation="no"), said("b", simulation="no"))
    known = {10: "a", 11: "b"}
    words = ["study=demo", "smoke=true", "backend=deployment", "federation.min_sites=2", f"out={tmp_path / 'run'}"]
    monkeypatch.setattr("server.stages.plan.noise_multipliers", lambda _: {})
    monkeypatch.setattr("server.stages.plan.plan", lambda *_, **__: None)
    rounds = begin(grid, Study(RunStore.create(compose(words)), known=lambda: known))
    grid.contents |= {12: said("c", simulation="no")}
    assert rounds.newcomers("generator") == []
    known[12] = "c"
    assert [member.site for member in rounds.newcomers("generator")] == ["c"]
