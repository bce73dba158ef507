"""The ledger of a resumed run beside an unbroken one's: nothing forgotten, nothing paid twice."""

import csv
import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedmedgen.composition import compose
from fedmedgen.data import phantoms
from fedmedgen.data.cases import CaseSet
from fedmedgen.emission.writing import write_set
from fedmedgen.federation import local_round, records
from fedmedgen.federation.egress import Reply
from fedmedgen.federation.messages import Request
from fedmedgen.federation.policy import SitePolicy
from fedmedgen.privacy.ledger import load_or_create_key, spending_in
from fedmedgen.privacy.new_ledger import create_ledger
from server.run_store import RunStore
from simulations.in_process import run_in_process
from simulations.run import simulate
from sites.site import Site

WORDS = ["study=demo", "smoke=true", "data.size=[16,16]", "emission.count=4", "evaluation.enabled=false", "rounds=3"]
SITES = ("north", "south")
UNBROKEN = ["open", *["reserve", "complete"] * 4]  # three rounds of the generator, one of the segmenter
PASSING = ("at", "prev", "mac", "reply")  # times, keys and noise differ from run to run


class Crash(BaseException):
    """Power is cut: nothing after this line happens."""


def events(ledger: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in ledger.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in PASSING} for line in lines]


def kinds(ledger: Path) -> list[str]:
    return [line["event"] for line in events(ledger)]


def crash_at(call: int, monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> None:
    """The call of that number to a function never ends."""
    plain, calls = getattr(owner, name), []

    def counted(*arguments: Any, **words: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            raise Crash
        return plain(*arguments, **words)

    monkeypatch.setattr(owner, name, counted)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate([*WORDS, "data.sites=2"], out=str(tmp_path_factory.mktemp("unbroken") / "run"))


@pytest.mark.parametrize(
    ("owner", "name", "call"), [(local_round, "run", 4), (local_round, "run", 8), (RunStore, "save", 2)]
)
def test_in_a_seeded_simulation_the_resumed_ledger_equals_the_unbroken_one(
    unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: object, name: str, call: int
) -> None:
    with monkeypatch.context() as patched:
        crash_at(call, patched, owner, name)
        with pytest.raises(Crash):
            simulate([*WORDS, "data.sites=2"], out=str(tmp_path / "broken"))
    simulate(resume=str(tmp_path / "broken"))
    for site in ("site-1", "site-2"):
        whole = events(unbroken / "sites" / site / "ledger.jsonl")
        assert [line["event"] for line in whole] == UNBROKEN
        assert events(tmp_path / "broken" / "sites" / site / "ledger.jsonl") == whole


@pytest.fixture
def nodes(tmp_path: Path) -> dict[int, dict[str, Any]]:
    """Two real sites, each with its own policy, films and operating system's noise."""
    data = compose(WORDS).data
    for number, site in enumerate(SITES):
        drawn = phantoms.draw(
            "chest", 24, size=(16, 16), seed=number, classes=data.classes, mask_classes=data.mask_classes
        )
        films = tmp_path / site / "films"
        write_set(
            CaseSet(tuple(replace(case, site="") for case in drawn), data.classes, data.mask_classes),
            films,
            datasheet={},
        )
        SitePolicy(
            site=site,
            folder="state",
            patients_declared=30,
            labelled_declared=30,
            lifetime_epsilon=10.0,
            lifetime_delta=1e-5,
            data_root="films",
            unit="image",
        ).write(tmp_path / site / "policy.yaml")
        policy = SitePolicy.read(tmp_path / site / "policy.yaml")
        create_ledger(policy.ledger_path, key_path=policy.key_path, head_path=policy.head_path)
    return {100 + number: {"policy": str(tmp_path / site / "policy.yaml")} for number, site in enumerate(SITES)}


@pytest.fixture
def deployed(tmp_path: Path, nodes: dict[int, dict[str, Any]]) -> Callable[[bool], Path]:
    """Run the study over the real sites, or go on with it; its run folder."""
    out = tmp_path / "run"

    def run(resume: bool = False) -> Path:
        words = shlex.join([*WORDS, "backend=deployment", "federation.min_sites=1", f'out="{out}"'])
        run_in_process({"overrides": words, "out": str(out), "resume": resume}, nodes)
        return out

    return run


def spent(tmp_path: Path, site: str) -> tuple[float, list[str]]:
    ledger = tmp_path / site / "state" / "ledger.jsonl"
    key = load_or_create_key(ledger.with_name("site.key"))
    return spending_in(ledger, key=key, head_path=ledger.with_suffix(".head")).epsilon, kinds(ledger)


def rounds(run: Path) -> list[tuple[str, str, str, str]]:
    with (run / "rounds.csv").open() as file:
        return [(row["stage"], row["round"], row["site"], row["status"]) for row in csv.DictReader(file)]


def test_real_sites_replay_what_a_crashed_server_lost_and_pay_nothing_twice(
    deployed: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, sent = Site.train, list[Reply]()

    def watched(site: Site, request: Request) -> Reply:
        sent.append(plain(site, request))
        return sent[-1]

    monkeypatch.setattr(Site, "train", watched)
    with monkeypatch.context() as patched:
        crash_at(2, patched, RunStore, "save")
        with pytest.raises(Crash):
            deployed()
    lost = sent[-2:]
    sent.clear()
    run = deployed(True)
    for before, after in zip(lost, sent, strict=False):
        assert all(np.array_equal(before.arrays[key], after.arrays[key]) for key in before.arrays)
    assert {status for *_, status in rounds(run)} == {records.DONE}
    assert [spent(tmp_path, site)[1] for site in SITES] == [UNBROKEN, UNBROKEN]


def test_a_round_that_crashed_at_a_real_site_stays_spent_and_its_run_ends_with_a_round_less(
    deployed: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        crash_at(4, patched, local_round, "run")  # south, in round 2
        with pytest.raises(Crash):
            deployed()
    assert spent(tmp_path, "south")[1] == ["open", "reserve", "complete", "reserve"]
    run = deployed(True)
    assert spent(tmp_path, "north")[1] == UNBROKEN
    assert spent(tmp_path, "south")[1] == ["open", "reserve", "complete", "reserve", *["reserve", "complete"] * 2]
    assert spent(tmp_path, "south")[0] == spent(tmp_path, "north")[0]
    refused = [row for row in rounds(run) if row[3] != records.DONE]
    assert refused == [("generator", "3", "south", records.REFUSED_BUDGET)]
    assert json.loads((run / "result.json").read_text())["status"] == "completed"


def test_a_stage_whose_sites_have_all_spent_it_in_crashes_ends_early_and_the_study_goes_on(
    deployed: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for call, resume in ((3, False), (2, True)):  # north, then south, in round 2
        with monkeypatch.context() as patched:
            crash_at(call, patched, local_round, "run")
            with pytest.raises(Crash):
                deployed(resume)
    run = deployed(True)
    refused = [row for row in rounds(run) if row[3] != records.DONE]
    assert refused == [("generator", "3", site, records.REFUSED_BUDGET) for site in SITES]
    assert [row[:2] for row in rounds(run) if row[3] == records.DONE][-1] == ("segmenter", "1")
    assert json.loads((run / "result.json").read_text())["status"] == "completed"
