"""One budget for a site's life: other runs, projects and servers share it, whatever they call themselves."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from fedmedgen.federation import plan, records
from fedmedgen.federation.egress import Reply

REFUSED_BUDGET = Reply({records.SITE: "north", records.STATUS: records.REFUSED_BUDGET})
REFUSED_LEDGER = Reply({records.SITE: "north", records.STATUS: records.REFUSED_LEDGER})
OTHERS = [
    ("another run", ()),
    ("another study", ("study=pneumonia", "data.root=", "data.size=[16,16]", "generator.channels=[8,8]",
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
    (tmp_path / "vault").rmdir()
    assert apart.ask() == REFUSED_LEDGER
    assert not apart.spent
