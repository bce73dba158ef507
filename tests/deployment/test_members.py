"""The sites that may come: let in, revoked, let in with another key, and never shut out by an answer that got lost."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fedmedgen.deployment.flower_cli import KeyTakenError, NoNodeError
from fedmedgen.deployment.members import Members
from fedmedgen.errors import RunError


@dataclass
class Pretended:
    """Stands in for the part of Flower that has to do with sites: it never forgets a key, nor takes one twice."""

    registered: dict[int, str] = field(default_factory=dict)
    keys: dict[str, int] = field(default_factory=dict)
    asked: int = 0
    broken: bool = False
    mute: bool = False  # does what it is told; the answer gets lost

    def register(self, public_key: Path, name: str) -> int:
        self.asked += 1
        if self.broken:
            raise RunError("no")
        if key_in(public_key) in self.keys:
            raise KeyTakenError("Public key already in use.")
        node = self.keys[key_in(public_key)] = len(self.keys) + 1
        self.registered[node] = name
        if self.mute:
            raise RunError("no answer")
        return node

    def unregister(self, node: int) -> None:
        if node not in self.registered:
            raise NoNodeError("Node ID not found for account.")
        del self.registered[node]
        if self.mute:
            raise RunError("no answer")

    def find(self, public_key: Path) -> tuple[int, str] | None:
        node = self.keys.get(key_in(public_key))
        return None if node is None else (node, self.nodes()[node])

    def nodes(self) -> dict[int, str]:
        return {node: "online" if node in self.registered else "unregistered" for node in self.keys.values()}


def key_in(file: Path) -> str:
    if not file.read_text():
        raise RunError("expected a site's public key")
    return file.read_text().strip()


class Killed(BaseException):
    """What a kill does to whoever waits for an answer."""


@pytest.fixture
def cli() -> Pretended:
    return Pretended()


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    folder = tmp_path / "sites"
    folder.mkdir()
    (folder / "north.pub").write_text("a key")
    return folder


def served(keys: Path, cli: Pretended) -> Members:
    """The members as a server that has just started knows them."""
    return Members(keys, keys.parent / "members.json", cli)  # type: ignore[arg-type]


def killed_before_it_is_written(members: Members, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(_: Members) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Members, "_write", killed)
        with pytest.raises(Killed):
            members.keep()


@pytest.mark.parametrize("text", ["", "[]", '{"north": {}}', '{"north": {"node": "x", "key": ""}}'])
def test_a_damaged_list_of_members_is_said_in_words(keys: Path, cli: Pretended, text: str) -> None:
    (keys.parent / "members.json").write_text(text)
    with pytest.raises(RunError, match=r"delete it and superlink\.db"):
        served(keys, cli)


def test_sites_come_and_go_with_their_public_keys(keys: Path, cli: Pretended) -> None:
    members = served(keys, cli)
    (keys / "south.pub").write_text("another")
    members.keep()
    members.look()
    assert (set(cli.registered.values()), members.online) == ({"north", "south"}, ("north", "south"))
    (keys / "north.pub").unlink()
    (keys / "south.pub").write_text("a new one")
    old = {name: entry["node"] for name, entry in members.known.items()}
    members.keep()
    assert list(cli.registered.values()) == ["south"]
    assert members.known["south"]["node"] != old["south"]
    served(keys, cli).keep()
    assert list(cli.registered.values()) == ["south"]


def test_a_site_that_flower_will_not_register_does_not_keep_others_out(keys: Path, cli: Pretended) -> None:
    members = served(keys, cli)
    cli.broken = True
    members.keep()
    assert members.known == {}
    cli.broken = False
    members.keep()
    assert set(members.known) == {"north"}


def test_a_key_that_was_revoked_is_refused_once_and_a_new_one_let_in(
    keys: Path, cli: Pretended, caplog: pytest.LogCaptureFixture
) -> None:
    members = served(keys, cli)
    members.keep()
    (keys / "north.pub").unlink()
    members.keep()
    (keys / "north.pub").write_text("a key")
    for _ in range(3):
        members.keep()
    assert (members.said(), cli.registered, cli.asked) == ({"north": "refused"}, {}, 2)
    assert caplog.text.count("can't come back: make a new one (delete sites/north/site.key, provision again)") == 1
    (keys / "north.pub").write_text("a new one")
    members.keep()
    members.look()
    assert (members.said(), cli.registered) == ({"north": "online"}, {2: "north"})


def test_a_refused_key_that_is_taken_away_is_forgotten(keys: Path, cli: Pretended) -> None:
    members = served(keys, cli)
    cli.keys["a key"] = 1
    members.keep()
    assert members.said() == {"north": "refused"}
    (keys / "north.pub").unlink()
    members.keep()
    assert members.said() == {}


def test_a_registration_whose_answer_got_lost_is_taken_up(keys: Path, cli: Pretended) -> None:
    members = served(keys, cli)
    cli.mute = True
    members.keep()
    assert members.known == {}
    cli.mute = False
    members.keep()
    assert (members.known["north"]["node"], cli.registered) == ("1", {1: "north"})
    assert json.loads(members.file.read_text()) == members.known


def test_a_registration_is_taken_up_by_a_server_that_was_killed_before_it_wrote_it_down(
    keys: Path, cli: Pretended, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_before_it_is_written(served(keys, cli), monkeypatch)
    members = served(keys, cli)
    assert members.known == {}
    members.keep()
    assert (members.known["north"]["node"], cli.registered) == ("1", {1: "north"})


def test_a_server_that_was_killed_before_it_wrote_a_revocation_down_lets_the_new_key_in(
    keys: Path, cli: Pretended, monkeypatch: pytest.MonkeyPatch
) -> None:
    served(keys, cli).keep()
    (keys / "north.pub").write_text("a new one")
    killed_before_it_is_written(served(keys, cli), monkeypatch)
    members = served(keys, cli)
    assert (members.known["north"]["node"], cli.registered) == ("1", {})
    members.keep()
    assert (members.known["north"]["node"], cli.registered) == ("2", {2: "north"})


def test_a_site_that_flower_has_no_more_is_not_called_away_for_ever(keys: Path, cli: Pretended) -> None:
    members = served(keys, cli)
    members.keep()
    cli.registered.clear()
    cli.keys.clear()  # its database was deleted
    members.look()
    members.keep()
    assert cli.registered == {1: "north"}
    cli.unregister(1)
    members.look()
    members.keep()
    assert members.said() == {"north": "refused"}


@pytest.mark.parametrize("meanwhile", ["a key\n", ""])  # as an editor or a copy under way leaves it
def test_a_key_that_is_copied_once_more_is_not_revoked(keys: Path, cli: Pretended, meanwhile: str) -> None:
    members = served(keys, cli)
    members.keep()
    (keys / "north.pub").write_text(meanwhile)
    members.keep()
    (keys / "north.pub").write_text("a key")
    members.keep()
    assert (cli.registered, members.known["north"]["node"], cli.asked) == ({1: "north"}, "1", 1)


def test_two_sites_with_one_key_are_not_taken_for_each_other(
    keys: Path, cli: Pretended, caplog: pytest.LogCaptureFixture
) -> None:
    members = served(keys, cli)
    (keys / "south.pub").write_text("a key")
    members.keep()
    members.look()
    assert members.said() == {"north": "online", "south": "refused"}
    assert "its key is that of north" in caplog.text
