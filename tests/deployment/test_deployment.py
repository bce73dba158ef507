"""A deployment of real processes on loopback: intruders, and a study that four faults don't keep from its end."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedmedgen.deployment import certificates
from simulations.campaigns import accounts, intruders
from simulations.campaigns.deployment import Deployment, wait_for
from simulations.campaigns.faults import kill_alone, spoil_checkpoint


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    made = Deployment(tmp_path_factory.mktemp("deployment"), sites=("north", "south", "west"))
    made.provision()
    try:
        made.start("server", "north", "south")
        made.wait_until_online("north", "south")
        yield made
    finally:
        made.kill_all()


@pytest.mark.parametrize("name", ["server", "north"])
def test_serve_or_join_killed_alone_leaves_nothing_and_starts_again(deployment: Deployment, name: str) -> None:
    wait_for(lambda: len(deployment.family(name)) > 1, 120, f"what {name} starts")  # a node may be between two starts
    family = deployment.family(name)
    kill_alone(deployment, name)
    assert not [one for one in family if one.is_running() and one.status() != "zombie"]
    deployment.start(name)
    wait_for(lambda: bool(deployment.health(name).get("ok")), 120, f"the health of {name}")
    assert not {one.pid for one in family} & {one.pid for one in deployment.family(name)}


def test_a_study_survives_a_dead_site_a_dead_superlink_a_dead_server_and_a_spoiled_checkpoint(
    deployment: Deployment,
) -> None:
    deployment.wait_until_online("north", "south")  # a quorum of one begins with whoever is there
    deployment.submit("first", "rounds=3", "federation.min_sites=1")
    took_part = {"north", "south"}
    wait_for(lambda: {row["site"] for row in deployment.table("first")} == took_part, 600, "a round of both sites")
    deployment.kill("south")  # in the middle of the next round
    deployment.start("south")
    (link,) = [one for one in deployment.family("server") if "fedmedgen.deployment.superlink" in one.cmdline()]
    link.send_signal(signal.SIGKILL)
    deployment.wait_round("first", 2)
    deployment.kill("server")
    spoil_checkpoint(deployment, "first")
    deployment.start("server")
    record = deployment.wait_end("first")
    assert (record.status, record.reason) == ("completed", "")
    assert deployment.rounds("first") == 3
    assert accounts.wrongs(deployment, "first") == {
        "spends lost": [], "epsilon under-reported": [], "unlisted data sent": [],
    }  # fmt: skip
    result = json.loads((Path(record.out) / "result.json").read_text())
    assert set(result["sites"]) == took_part
    assert result["backend"] == "deployment"
    assert (Path(record.out) / "report.html").is_file()


def test_the_key_that_replaces_a_lost_one_is_registered_in_its_place(deployment: Deployment) -> None:
    def node() -> str:
        known = json.loads((Path(deployment.server.state) / "members.json").read_text())
        return str(known.get("west", {}).get("node", ""))

    lost, before = intruders.site_key(deployment, "west"), node()
    (deployment.kit("west") / "site.key").unlink()
    deployment.command("provision", "project.yaml", "--out", "kits")
    wait_for(lambda: node() not in ("", before), 120, "the new key's registration")
    assert intruders.activate(deployment, lost).startswith("refused: 412")


def test_every_intruder_but_a_fresh_replay_is_refused_and_written_down(deployment: Deployment) -> None:
    assert intruders.good_site(deployment) == "let in"  # west, with the key that replaced another
    (deployment.kit("server") / "sites" / "west.pub").unlink()
    wait_for(lambda: "west" not in deployment.health("server").get("sites", {"west": ""}), 120, "the revocation")
    for name, (attempt, heard) in intruders.INTRUDERS.items():
        before = len(deployment.security("server"))
        said = attempt(deployment)
        assert said.startswith(heard), f"{name}: {said}"
        if name in intruders.AT_THE_SITE:
            assert f"the log of `join`: {intruders.EXPIRED}" in said
        elif name not in intruders.NOT_REFUSED:
            wait_for(lambda: len(deployment.security("server")) > before, 10, f"a line about {name}")  # noqa: B023
            assert deployment.security("server")[-1]["peer"] == intruders.STRANGER, name


def test_a_key_that_was_revoked_and_put_back_is_shown_as_refused(deployment: Deployment) -> None:
    file = deployment.kit("server") / "sites" / "west.pub"
    file.unlink(missing_ok=True)
    wait_for(lambda: "west" not in deployment.health("server").get("sites", {"west": ""}), 120, "the revocation")
    file.write_bytes(certificates.public_ssh(intruders.site_key(deployment, "west")))
    wait_for(lambda: deployment.health("server").get("sites", {}).get("west") == "refused", 120, "the refusal")
    assert "west" not in json.loads((Path(deployment.server.state) / "members.json").read_text())


def test_a_site_whose_registration_was_never_written_down_is_taken_up_again(deployment: Deployment) -> None:
    file = Path(deployment.server.state) / "members.json"
    before = json.loads(file.read_text())
    deployment.kill("server")
    file.write_text(json.dumps({name: one for name, one in before.items() if name != "north"}))
    deployment.start("server")
    wait_for(lambda: json.loads(file.read_text()).get("north") == before["north"], 120, "north, as it was registered")
    assert deployment.health("server").get("sites", {}).get("north") != "refused"


def test_all_ends_when_told_with_nothing_left_behind(deployment: Deployment) -> None:
    families = {name: deployment.family(name) for name in deployment.running}
    assert set(deployment.stop().values()) == {0}
    left = [one for family in families.values() for one in family if one.is_running() and one.status() != "zombie"]
    assert left == []
