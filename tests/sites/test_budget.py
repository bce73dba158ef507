"""One budget for a site's life: other runs, projects and servers share it, whatever they call themselves."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fedmedgen.errors import LedgerError
from fedmedgen.federation import messages, plan, records
from fedmedgen.federation.egress import Reply
from fedmedgen.federation.own_data import own_cases
from sites import site
from sites.site import Site

REFUSED_BUDGET = Reply({records.SITE: "north", records.STATUS: records.REFUSED_BUDGET})
REFUSED_LEDGER = Reply({records.SITE: "north", records.STATUS: records.REFUSED_LEDGER})
OTHERS = [
    ("another run", ()),
    ("another study", ("study=lungs", "data.root=", "data.size=[16,16]", "generator.channels=[8,8]",
                       "generator.norm_groups=4", "generator.unshuffle=2")),
    ("other classes", ("data.classes=[normal,effusion]",)),
    ("another size", ("data.size=[24,24]",)),
    ("another seed", ("seed=9",)),
    ("no segmenter", ("segmenter.rounds=0",)),
]  # fmt: skip


def lines(server: Any) -> list[str]:
    return (Path(server.policy.folder) / "ledger.jsonl").read_text().splitlines()


@pytest.mark.parametrize("words", [row[1] for row in OTHERS], ids=[row[0] for row in OTHERS])
def test_another_run_or_project_finds_the_budget_spent(server: Any, words: tuple[str, ...]) -> None:
    assert server.ask().config[records.STATUS] == records.DONE
    before = lines(server)
    assert server.asking(*words).ask(run="run-2") == REFUSED_BUDGET
    assert lines(server) == before


@pytest.mark.parametrize("words", [row[1] for row in OTHERS], ids=[row[0] for row in OTHERS])
def test_epsilon_and_delta_of_projects_add_in_one_ledger(server: Any, words: tuple[str, ...]) -> None:
    wide = server.at(lifetime_epsilon=20.0, lifetime_delta=2e-5)
    assert wide.ask().config[records.STATUS] == records.DONE
    assert wide.asking(*words).ask(run="run-2").config[records.STATUS] == records.DONE
    opened = [json.loads(line) for line in lines(wide) if json.loads(line)["event"] == "open"]
    assert sum(event["epsilon"] for event in opened) == pytest.approx(20.0, rel=0.02)
    assert sum(event["delta"] for event in opened) == pytest.approx(2e-5)
    assert wide.ask(run="run-3") == REFUSED_BUDGET


def test_delta_runs_out_as_epsilon_does(server: Any) -> None:
    narrow = server.at(lifetime_epsilon=1000.0, lifetime_delta=1.5e-5)
    assert narrow.ask().config[records.STATUS] == records.DONE
    assert narrow.ask(run="run-2") == REFUSED_BUDGET
    assert narrow.asking("privacy.delta=4e-6").ask(run="run-2").config[records.STATUS] == records.DONE


def test_the_name_of_an_earlier_run_opens_no_more_than_its_own_plan(server: Any) -> None:
    """A run's rounds can be asked for once each; under its name no further round, and no other plan, is to be had."""
    stage = plan.stages(server.settings)[0]
    for number in range(1, stage.rounds + 1):
        assert server.ask(server_round=number).config[records.STATUS] == records.DONE
    before = lines(server)
    assert server.ask(server_round=1, proximal_mu=0.5) == REFUSED_BUDGET
    assert server.ask(noise_multiplier=plan.noise_multiplier(server.settings) * 1.01) == REFUSED_BUDGET
    assert server.asking("privacy.clip_norm=2.0").ask() == REFUSED_BUDGET
    assert lines(server) == before


@pytest.fixture
def apart(server: Any, tmp_path: Path) -> Any:
    """A server at a site that keeps the ledger's head in a second place, with room for two runs."""
    (tmp_path / "vault").mkdir()
    return server.at(ledger_head="vault/north.head", lifetime_epsilon=20.0, lifetime_delta=2e-5)


def test_the_ledgers_head_lies_where_the_policy_says(apart: Any, tmp_path: Path) -> None:
    assert apart.ask().config[records.STATUS] == records.DONE
    assert (tmp_path / "vault" / "north.head").is_file()
    assert not list(Path(apart.policy.folder).glob("*.head"))


def test_an_older_ledger_restored_beside_a_head_kept_elsewhere_is_refused(apart: Any, tmp_path: Path) -> None:
    state, backup = Path(apart.policy.folder), tmp_path / "backup"
    assert apart.ask().config[records.STATUS] == records.DONE
    shutil.copytree(state, backup)
    assert apart.ask(run="run-2").config[records.STATUS] == records.DONE
    shutil.rmtree(state)
    shutil.copytree(backup, state)
    before = lines(apart)
    assert apart.ask(run="run-3") == REFUSED_LEDGER
    assert lines(apart) == before


def test_a_ledger_deleted_beside_its_head_is_refused(apart: Any) -> None:
    assert apart.ask().config[records.STATUS] == records.DONE
    (Path(apart.policy.folder) / "ledger.jsonl").unlink()
    assert apart.ask(run="run-2") == REFUSED_LEDGER


def test_a_head_whose_disk_is_not_there_is_refused_before_anything_is_spent(apart: Any, tmp_path: Path) -> None:
    apart.create()
    (tmp_path / "vault").rename(tmp_path / "away")
    assert apart.ask() == REFUSED_LEDGER
    assert not apart.spent
    assert not (tmp_path / "vault").exists()
    (tmp_path / "away").rename(tmp_path / "vault")
    assert apart.ask().config[records.STATUS] == records.DONE


def as_it_is(server: Any, **words: Any) -> Reply:
    """The answer of a site for which nobody makes a ledger."""
    return messages.unpack_reply(server.deliver(server.request(**words)).content)


@pytest.mark.parametrize("spent_before", [False, True])
def test_a_state_folder_that_is_not_mounted_starts_no_fresh_budget(
    server: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, spent_before: bool
) -> None:
    state = Path(server.policy.folder)
    if spent_before:
        assert server.ask().config[records.STATUS] == records.DONE
        state.rename(tmp_path / "away")
    for empty in (False, True):  # no folder at all, or the empty one that a disk is mounted on
        if empty:
            shutil.rmtree(state)
            state.mkdir()
        assert as_it_is(server, run="run-2") == REFUSED_LEDGER
        assert {path.name for path in state.iterdir()} == {"security.jsonl"}  # that it was refused, no more
    for words in (f"expected the ledger's key at {state / 'site.key'}", "mounted", "fedmedgen ledger create"):
        assert words in caplog.text


@pytest.mark.parametrize("lost", ["site.key", "ledger.jsonl", "ledger.head"])
@pytest.mark.parametrize("spent_before", [False, True])
def test_a_key_a_ledger_or_a_head_that_is_gone_is_refused_and_not_made_anew(
    server: Any, spent_before: bool, lost: str
) -> None:
    if spent_before:
        assert server.ask().config[records.STATUS] == records.DONE
    else:
        server.create()
    place = Path(server.policy.folder) / lost
    data = place.read_bytes()
    place.unlink()
    with pytest.raises(LedgerError, match=r"there is none: a disk may not be mounted.*ledger create POLICY") as refused:
        Site(server.policy_read, partial(own_cases, server.policy)).ledger()
    assert str(place) in str(refused.value)
    assert as_it_is(server, server_round=2) == REFUSED_LEDGER
    assert not place.exists()
    place.write_bytes(data)
    place.chmod(0o600)
    assert as_it_is(server, server_round=2).config[records.STATUS] == records.DONE


def test_an_emptied_ledger_without_its_head_is_refused(server: Any) -> None:
    assert server.ask().config[records.STATUS] == records.DONE
    server.policy.ledger_path.write_bytes(b"")
    server.policy.head_path.unlink()
    assert as_it_is(server, server_round=2) == REFUSED_LEDGER
    assert not server.spent


def test_a_lowered_lifetime_limit_stops_the_plans_that_are_open(server: Any) -> None:
    wide, stored = server.at(lifetime_epsilon=20.0, lifetime_delta=2e-5), []
    for run in ("run-1", "run-2"):
        stored.append(wide.ask(run=run))
        assert stored[-1].config[records.STATUS] == records.DONE
    before = lines(server)
    for narrow in (wide.at(lifetime_epsilon=15.0), wide.at(lifetime_delta=1.5e-5)):
        assert narrow.ask(run="run-1", server_round=2) == REFUSED_BUDGET
        assert lines(server) == before
        assert narrow.ask(run="run-1").config[records.STATUS] == records.DONE  # paid already
    assert wide.ask(run="run-1", server_round=2).config[records.STATUS] == records.DONE


def test_nothing_is_checked_or_written_for_a_plan_that_has_no_room(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks: list[object] = []
    monkeypatch.setattr(site, "check_once", lambda *asked: checks.append(asked))
    assert server.ask().config[records.STATUS] == records.DONE
    assert server.ask(run="another").config[records.STATUS] == records.REFUSED_BUDGET
    assert len(checks) == 1
