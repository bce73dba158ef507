"""A site's personal layers: trained with the rest, carried from round to round, never sent."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedmedgen.errors import SettingsError
from fedmedgen.federation import local_round, packing, plan, records
from fedmedgen.federation.egress import Arrays
from fedmedgen.federation.local_round import LocalResult, LocalRound
from fedmedgen.federation.messages import Request
from fedmedgen.federation.model_arrays import arrays_of, personalise, shapes_of
from fedmedgen.training.checkpoints import load_arrays
from sites.personal import KEPT, PersonalLayers


@pytest.fixture
def own(server: Any) -> Any:
    """A server whose study leaves the norms at the sites."""
    return server.asking("federation.personal=norms")


def names(server: Any, kind: Any) -> set[str]:
    return set(shapes_of(local_round.build_model(server.settings, plan.GENERATOR), kind))


def kept(server: Any) -> dict[int, Arrays]:
    """What the site keeps of its personal layers, by round."""
    found = Path(server.policy.folder).glob("personal/*/*.safetensors")
    return {int(file.stem): {name: value.numpy() for name, value in load_arrays(file).items()} for file in found}


def test_personal_layers_never_leave_and_what_they_start_from_comes_along(own: Any) -> None:
    personal, shared = names(own, "personal"), names(own, "shared")
    assert all("norm" in name for name in personal)
    assert personal.isdisjoint(shared)
    along = {records.PUBLIC_PREFIX + name for name in personal}
    assert set(packing.unpacked(own.request().array_records[records.ARRAYS])) == shared | along
    reply = own.ask()
    assert reply.config[records.STATUS] == records.DONE
    assert set(reply.arrays) == shared
    assert set(kept(own)[1]) == personal


def test_a_site_that_would_send_them_is_stopped_at_the_door(own: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = local_round.run

    def leaky(*asked: Any, **more: Any) -> LocalResult:
        result = plain(*asked, **more)
        return LocalResult({**result.arrays, **result.personal}, result.loss, result.personal)

    monkeypatch.setattr(local_round, "run", leaky)
    reply = own.ask()
    assert (reply.config[records.STATUS], reply.arrays) == (records.FAULT, {})


def test_a_server_that_sends_them_is_refused(own: Any, server: Any) -> None:
    content = own.request()
    content[records.ARRAYS] = server.request()[records.ARRAYS]  # all of the network
    assert own.send(content).content[records.CONFIG][records.STATUS] == records.REFUSED_POLICY


def test_a_round_goes_on_from_what_the_round_before_left(own: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Arrays] = []
    plain = local_round.run

    def look(asked: LocalRound, *rest: Any, **more: Any) -> LocalResult:
        seen.append(asked.personal)
        return plain(asked, *rest, **more)

    monkeypatch.setattr(local_round, "run", look)
    own.ask()
    own.ask(server_round=2)
    assert seen[0] == {}
    first = kept(own)[1]
    assert all(np.array_equal(seen[1][name], value) for name, value in first.items())
    assert any(not np.array_equal(kept(own)[2][name], value) for name, value in first.items())


def test_the_first_round_starts_from_what_the_server_taught(own: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    taught = {name: value + 3 for name, value in local_round.public_arrays(
        local_round.build_model(own.settings, plan.GENERATOR)).items()}  # fmt: skip
    monkeypatch.setattr("fedmedgen.federation.local_round.public_arrays", lambda _: taught)
    own.ask()
    start = min(float(value.min()) for value in taught.values())
    assert all(value.min() > start - 1 for value in kept(own)[1].values())  # a round moves them by hundredths


def test_they_train_in_the_same_noised_steps(own: Any) -> None:
    """Two sites of equal data end with other layers: the noise is in them too."""
    lonely = own.at(folder=str(Path(own.policy.folder).parent / "lonely" / "state"))
    own.ask()
    lonely.ask()
    initial = arrays_of(local_round.build_model(own.settings, plan.GENERATOR), "personal")
    for name, value in kept(own)[1].items():
        assert not np.array_equal(value, initial[name])
        assert not np.array_equal(value, kept(lonely)[1][name])


def test_another_run_has_others_and_old_rounds_go(tmp_path: Path, own: Any) -> None:
    def layers(run: str) -> PersonalLayers:
        return PersonalLayers.of(tmp_path, Request(run, "generator", 1, own.settings, 1.0, 0.0, {}))

    first, other = layers("run-1"), layers("run-2")
    for number in range(1, KEPT + 3):
        first.keep(number, {"w": np.full(2, number, np.float32)})
    assert other.before(9) == {}
    assert first.before(KEPT + 3)["w"][0] == KEPT + 2
    assert first.before(KEPT + 2)["w"][0] == KEPT + 1  # a round that is asked again starts where it did
    assert first.before(1) == {}
    spoiled = first.folder / f"{KEPT + 2}.safetensors"
    spoiled.write_bytes(b"nothing")
    assert first.before(KEPT + 3)["w"][0] == KEPT + 1


def test_a_run_of_the_same_name_that_begins_again_keeps_its_first_rounds(tmp_path: Path, own: Any) -> None:
    layers = PersonalLayers.of(tmp_path, Request("run-1", "generator", 1, own.settings, 1.0, 0.0, {}))
    for number in (18, 19, 20, 1, 2):
        layers.keep(number, {"w": np.full(2, number, np.float32)})
    assert layers.before(2)["w"][0] == 1
    assert layers.before(3)["w"][0] == 2


def test_a_network_that_would_keep_all_or_nothing_is_refused(own: Any) -> None:
    for network in (torch.nn.Sequential(torch.nn.Linear(2, 2)), torch.nn.Sequential(torch.nn.LayerNorm(2))):
        with pytest.raises(SettingsError, match=r"federation\.personal=norms"):
            personalise(network, network, "norms")
