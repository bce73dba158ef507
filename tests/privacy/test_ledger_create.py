"""A real site's key, ledger and head are made by a person, once; from then on a missing one is a fault."""

import argparse
import json
import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fedmedgen.cli import ledger as ledger_command
from fedmedgen.errors import LedgerError, PolicyError, SettingsError
from fedmedgen.federation.policy import SitePolicy
from fedmedgen.privacy.budget import Plan
from fedmedgen.privacy.ledger import Ledger, Limit, load_key, spending_in
from fedmedgen.privacy.new_ledger import create_ledger, require_made

FILES = ["ledger_path", "key_path", "head_path"]


def call(*words: str) -> int:
    parser = argparse.ArgumentParser()
    ledger_command.add(parser.add_subparsers())
    arguments = parser.parse_args(["ledger", *words])
    return int(arguments.run(arguments))


@pytest.fixture
def policy(tmp_path: Path) -> SitePolicy:
    """The policy of a real site, whose state folder is not there yet."""
    return SitePolicy(
        site="north",
        folder=str(tmp_path / "srv" / "state"),
        patients_declared=100,
        labelled_declared=0,
        lifetime_epsilon=10.0,
        lifetime_delta=1e-4,
        data_root=str(tmp_path / "films"),
    )


@pytest.fixture
def written(policy: SitePolicy, tmp_path: Path) -> str:
    policy.write(tmp_path / "policy.yaml")
    return str(tmp_path / "policy.yaml")


def create(policy: SitePolicy) -> None:
    create_ledger(policy.ledger_path, key_path=policy.key_path, head_path=policy.head_path)


def made(policy: SitePolicy) -> Ledger:
    return Ledger(policy.ledger_path, key=load_key(policy.key_path), head_path=policy.head_path, made=True)


def open_plan(ledger: Ledger, plan: Plan, run: str = "run-1") -> None:
    ledger.open_plan(run, plan.digest, plan.to_mapping(), epsilon=4.0, delta=plan.delta, limit=Limit(10.0, 1e-3))


def test_create_makes_key_empty_ledger_and_head_for_their_owner_alone_and_says_where(
    written: str, policy: SitePolicy, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("create", written, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    places = {"ledger": policy.ledger_path, "head": policy.head_path, "key": policy.key_path}
    assert said == {"site": "north", **{name: str(place) for name, place in places.items()}}
    folder = Path(policy.folder)
    assert set(folder.iterdir()) == set(places.values())
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(place.stat().st_mode) for place in places.values()} == {0o600}
    assert policy.ledger_path.read_bytes() == b""
    assert json.loads(policy.head_path.read_text())["count"] == 0
    for action in ("show", "verify"):
        assert call(action, str(policy.ledger_path), "--key", str(policy.key_path)) == 0
    assert "the head fits" in capsys.readouterr().out


def test_create_says_in_words_where_they_are(
    written: str, policy: SitePolicy, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("create", written) == 0
    text = capsys.readouterr().out
    assert all(str(getattr(policy, name)) in text for name in FILES)
    assert "nothing spent" in text


@pytest.mark.parametrize("name", FILES)
def test_create_refuses_where_one_of_them_exists_names_it_and_changes_nothing(
    written: str, policy: SitePolicy, name: str
) -> None:
    place: Path = getattr(policy, name)
    place.parent.mkdir(parents=True)
    place.write_text("an older one")
    with pytest.raises(LedgerError, match=f"{place} exists already"):
        call("create", written)
    assert [(path, path.read_text()) for path in place.parent.iterdir()] == [(place, "an older one")]


def test_create_twice_leaves_the_first_ledger_and_its_spend(written: str, policy: SitePolicy, plan: Plan) -> None:
    call("create", written)
    open_plan(made(policy), plan)
    before = {path: path.read_bytes() for path in Path(policy.folder).iterdir()}
    with pytest.raises(LedgerError, match="exists already"):
        call("create", written)
    assert {path: path.read_bytes() for path in Path(policy.folder).iterdir()} == before


def test_create_puts_the_head_where_the_policy_says_and_refuses_where_its_disk_is_not_there(
    policy: SitePolicy, tmp_path: Path
) -> None:
    apart = replace(policy, ledger_head=str(tmp_path / "vault" / "north.head"))
    with pytest.raises(LedgerError, match=r"vault; there is none: mount its disk"):
        create(apart)
    assert not Path(policy.folder).exists()
    (tmp_path / "vault").mkdir()
    create(apart)
    assert (tmp_path / "vault" / "north.head").is_file()
    assert not (Path(policy.folder) / "ledger.head").exists()
    assert made(apart).spent().lines == 0


@pytest.mark.parametrize("option", ["--key", "--head"])
def test_create_takes_places_from_the_policy_alone(written: str, policy: SitePolicy, option: str) -> None:
    with pytest.raises(SettingsError, match="leave out --key and --head"):
        call("create", written, option, "elsewhere")
    assert not Path(policy.folder).exists()


def test_create_without_a_policy_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="expected the site's policy at"):
        call("create", str(tmp_path / "none.yaml"))


def test_create_where_nothing_can_be_written_is_refused_in_words(policy: SitePolicy, tmp_path: Path) -> None:
    (tmp_path / "srv").write_text("no folder")
    with pytest.raises(LedgerError, match="can't be written"):
        create(policy)


def test_all_that_create_makes_is_synced_and_the_head_comes_last(
    policy: SitePolicy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    synced, fsync = list[str](), os.fsync

    def watched(handle: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{handle}").readlink().relative_to(tmp_path)))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", watched)
    create(policy)
    assert synced[:2] == ["srv", "."] or synced[:2] == [".", "srv"]
    key, *rest = synced[2:]
    assert key.startswith("srv/state/site.key.")
    state = "srv/state"
    assert rest == [state, f"{state}/ledger.jsonl", state, f"{state}/ledger.head.new", state]


def test_an_empty_ledger_with_a_head_of_no_lines_takes_its_first_plan(policy: SitePolicy, plan: Plan) -> None:
    create(policy)
    assert made(policy).spent().lines == 0
    open_plan(made(policy), plan)
    open_plan(made(policy), plan)
    assert (made(policy).spent().epsilon, made(policy).spent().lines) == (4.0, 1)


def test_a_crash_in_the_first_write_of_a_made_ledger_is_mended(policy: SitePolicy, plan: Plan) -> None:
    create(policy)
    head = policy.head_path.read_bytes()
    open_plan(made(policy), plan)
    policy.head_path.write_bytes(head)
    assert made(policy).spent().epsilon == 4.0
    open_plan(made(policy), plan, run="run-2")
    assert made(policy).spent().epsilon == 8.0


@pytest.mark.parametrize("spent", [False, True])
@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_gone_is_named_and_a_person_told_what_to_do(
    policy: SitePolicy, plan: Plan, name: str, spent: bool
) -> None:
    create(policy)
    ledger = made(policy)
    if spent:
        open_plan(ledger, plan)
    place: Path = getattr(policy, name)
    place.unlink()
    words = rf"expected the ledger.* at {place}; there is none: a disk may not be mounted.*`fedmedgen ledger create POL"
    with pytest.raises(LedgerError, match=words):
        require_made(policy.ledger_path, key_path=policy.key_path, head_path=policy.head_path)
    if name != "key_path":  # gone after the site has looked
        with pytest.raises(LedgerError, match=words):
            open_plan(ledger, plan, run="run-2")
    assert not place.exists()


def test_a_made_ledger_whose_folder_goes_away_makes_no_other(policy: SitePolicy, plan: Plan, tmp_path: Path) -> None:
    create(policy)
    ledger = made(policy)
    Path(policy.folder).rename(tmp_path / "away")
    acts: list[Callable[[], None]] = [
        lambda: open_plan(ledger, plan),
        lambda: ledger.reserve("run-1", plan.digest, "generator", 1, "request"),
        lambda: ledger.complete("request", "hash"),
    ]
    for act in acts:
        with pytest.raises(LedgerError, match="there is none"):
            act()
    assert not Path(policy.folder).exists()


def test_an_emptied_ledger_beside_the_head_of_its_spend_is_refused(policy: SitePolicy, plan: Plan) -> None:
    create(policy)
    open_plan(made(policy), plan)
    policy.ledger_path.write_bytes(b"")
    with pytest.raises(LedgerError, match="0 whole lines but its head says 1"):
        spending_in(policy.ledger_path, key=load_key(policy.key_path), head_path=policy.head_path)
