"""Every message of a whole study, walked: no record, key, array, type, shape or figure crosses the wire unlisted.

What is listed stands here by hand, so that a new key in `federation/records` needs a second thought.
"""

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedmedgen.composition import compose
from fedmedgen.data import phantoms
from fedmedgen.data.cases import CaseSet
from fedmedgen.emission.writing import write_set
from fedmedgen.federation import egress, local_round, messages, packing, records
from fedmedgen.federation.local_statistics import Shapes, reply_shapes, request_shapes
from fedmedgen.federation.model_arrays import shapes_of
from fedmedgen.federation.policy import SitePolicy, for_real_sites
from fedmedgen.models.saving import load_generator
from fedmedgen.privacy.new_ledger import create_ledger
from fedmedgen.settings import Settings
from fedmedgen.training.checkpoints import load_arrays
from simulations.in_process import InProcessGrid, run_in_process
from simulations.run import simulate
from sites.site import Site

Kinds = dict[str, dict[str, type]]
WORDS = ("study=demo", "smoke=true", "evaluation.enabled=false", "emission.count=6", "data.size=[16,16]",
         "privacy.engine=reference", "segmenter.rounds=2")  # fmt: skip
ROUND: dict[str, type] = {"run": str, "stage": str, "server-round": int, "settings": str, "noise-multiplier": float,
                          "statistics-noise": float}  # fmt: skip
SUM: dict[str, type] = {"session": str, "masking": str}
TOLD: dict[str, Kinds] = {
    "query": {"config": {"settings": str}},
    "train": {"config": ROUND},
    **{f"train.{phase}": {"config": {**ROUND, **SUM}} for phase in ("advertise", "mask")},
    **{f"train.{phase}": {"config": {**SUM, "settings": str}} for phase in ("share", "agree", "unmask")},
}
SOMETIMES = {"proximal-mu": float, "public-arrays": str}
SAID: dict[str, Kinds] = {
    "query": {
        "config": {"site": str, "status": str, "unit": str, "simulation": str},
        "metrics": {"patients-declared": float, "labelled-declared": float},
    },
    "train": {"config": {"site": str, "status": str}, "metrics": {"num-examples": float}},
    "train.mask": {"config": {"site": str, "status": str}},
    **{
        f"train.{phase}": {"config": {"site": str, "status": str, "masking": str}}
        for phase in ("advertise", "share", "agree", "unmask")
    },
}
DECLARED = {"north": (40, 30), "south": (80, 10)}  # patients, and those with masks; each site holds 12


@dataclass(frozen=True)
class Exchange:
    """A message to a site and its reply."""

    kind: str
    asked: RecordDict
    said: RecordDict

    @property
    def stage(self) -> str:
        return str(self.asked[records.CONFIG].get(records.STAGE, ""))

    @property
    def site(self) -> str:
        return str(self.said[records.CONFIG][records.SITE])


@dataclass(frozen=True)
class Walk:
    """All exchanges of a study, what it was asked with, and the policies of its sites."""

    exchanges: list[Exchange]
    settings: Settings
    policies: dict[str, SitePolicy]
    run: Path


def copied(content: RecordDict) -> RecordDict:
    """As it crossed the wire, whatever becomes of its records afterwards."""
    return RecordDict({name: type(record)(dict(record)) for name, record in content.items()})


def walked(run: Callable[[], Path]) -> tuple[Path, list[Exchange]]:
    """Run a study and listen to its wire."""
    heard: list[Exchange] = []
    plain = InProcessGrid._answer

    def listen(grid: InProcessGrid, message: Message) -> Message:
        reply = plain(grid, message)
        heard.append(Exchange(message.metadata.message_type, copied(message.content), copied(reply.content)))
        return reply

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(InProcessGrid, "_answer", listen)
        patched.setenv("FEDMEDGEN_SIMULATION", "1")
        return run(), heard


def settings_of(run: Path) -> Settings:
    return Settings.from_mapping(yaml.safe_load((run / "settings.yaml").read_text()))


def simulated(folder: Path, *words: str) -> Walk:
    run, heard = walked(lambda: simulate([*WORDS, "data.max_patients=12", *words], out=str(folder / "run")))
    policies = {file.parent.name: SitePolicy.read(file) for file in run.glob("sites/*/policy.yaml")}
    return Walk(heard, settings_of(run), policies, run)


def real_policies(folder: Path, settings: Settings) -> dict[str, SitePolicy]:
    """Two real sites with films of their own, a policy file each."""
    classes, masks = settings.data.classes, settings.data.mask_classes
    policies = {}
    for seed, (site, (patients, labelled)) in enumerate(DECLARED.items()):
        drawn = phantoms.draw("chest", 12, size=(16, 16), seed=seed, classes=classes, mask_classes=masks)
        cases = tuple(replace(case, site="", patient=f"p{number}") for number, case in enumerate(drawn))
        write_set(CaseSet(cases, classes, masks), folder / site / "films", datasheet={})
        table = folder / site / "films" / "labels.csv"
        lines = table.read_text().splitlines()
        names = ["patient", *(f"p{number}" for number in range(12))]
        table.write_text("\n".join(f"{line},{name}" for line, name in zip(lines, names, strict=True)) + "\n")
        policies[site] = SitePolicy(
            site=site,
            folder=str(folder / site / "state"),
            patients_declared=patients,
            labelled_declared=labelled,
            lifetime_epsilon=10.0,
            lifetime_delta=1e-5,
            data_root=str(folder / site / "films"),
        )
        policies[site].write(folder / site / "policy.yaml")
        made = policies[site]
        create_ledger(made.ledger_path, key_path=made.key_path, head_path=made.head_path)
    return policies


def deployed(folder: Path, *words: str) -> Walk:
    """A study over real sites: nodes that know nothing but the path of their policy."""
    study = [*WORDS, "backend=deployment", "federation.min_sites=2", 'data.root="/the/servers/own"', *words]
    settings = compose(study)
    policies = real_policies(folder, settings)
    nodes = {100 + n: {"policy": str(folder / site / "policy.yaml")} for n, site in enumerate(policies)}
    run_config = {"overrides": " ".join(study), "out": str(folder / "run"), "resume": False}

    def run() -> Path:
        run_in_process(run_config, nodes)
        return folder / "run"

    out, heard = walked(run)
    assert json.loads((out / "result.json").read_text())["lost_sites"] == {}
    return Walk(heard, settings, policies, out)


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Walk:
    return simulated(tmp_path_factory.mktemp("private"))


@pytest.fixture(scope="module")
def ordinary(tmp_path_factory: pytest.TempPathFactory) -> Walk:
    return simulated(tmp_path_factory.mktemp("ordinary"), "privacy=none", "rounds=1", "generator.local_steps=1")


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Walk:
    return deployed(tmp_path_factory.mktemp("real"))


def offences(walk: Walk, said: dict[str, Kinds] = SAID) -> list[str]:
    """Everything on the wire that isn't listed, in words."""
    found: list[str] = []
    shapes = {stage: _shapes(walk.settings, stage) for stage in {exchange.stage for exchange in walk.exchanges}}
    for exchange in walk.exchanges:
        both = ((exchange.asked, TOLD[exchange.kind]), (exchange.said, said[exchange.kind]))
        for (content, listed), expected in zip(both, shapes[exchange.stage], strict=True):
            found += _odd_records(content, listed, with_arrays=exchange.kind == "train")
            found += _odd_arrays(content, expected)
        found += _odd_figures(exchange, walk.policies.get(exchange.site))
    return found


def _shapes(settings: Settings, stage: str) -> tuple[Shapes, Shapes]:
    """The arrays that are asked with, and that answer."""
    if not stage:
        return {}, {}
    if stage == "statistics":
        return request_shapes(settings, 5), reply_shapes(settings, 5)
    named = local_round.build_model(settings, stage).named_parameters()
    network = {name: tuple(value.shape) for name, value in named if value.requires_grad}
    return network, network


def _odd_records(content: RecordDict, listed: Kinds, *, with_arrays: bool) -> list[str]:
    wanted = {*listed, *(["arrays"] if with_arrays else [])}
    found = [f"record {name}" for name in wanted.symmetric_difference(content)]
    for name, kinds in listed.items():
        keys = {key: type(value) for key, value in content.get(name, {}).items()}
        found += [f"{name}: {key} of {kind}" for key, kind in keys.items() ^ kinds.items()]
    return found


def _odd_arrays(content: RecordDict, expected: dict[str, tuple[int, ...]]) -> list[str]:
    found = [record for record in content.array_records.values() if packing.is_packed(record)]
    if len(found) != len(content.array_records):
        return ["arrays beside what is packed"]
    arrays = {name: (str(value.dtype), value.shape) for record in found
              for name, value in packing.unpacked(record).items()}  # fmt: skip
    wanted = {name: ("float32", shape) for name, shape in expected.items()}
    odd = [f"array {name} {what}" for name, what in arrays.items() ^ wanted.items()]
    return odd + ["bytes beside the arrays" for record in found if not _is_all_arrays(record)]


def _is_all_arrays(record: ArrayRecord) -> bool:
    """Whether a record holds what its arrays pack to, and not a byte more."""
    own = messages.pack_arrays(packing.unpacked(record))
    return list(record) == list(own) and all(record[name].data == array.data for name, array in own.items())


def _odd_figures(exchange: Exchange, policy: SitePolicy | None) -> list[str]:
    """Figures and words that aren't the policy's own."""
    if policy is None:
        return [f"a site called {exchange.site}"]
    patients, labelled = float(policy.patients_declared), float(policy.labelled_declared)
    own = {"patients-declared": patients, "labelled-declared": labelled, "site": policy.site, "unit": policy.unit,
           "simulation": "yes" if policy.simulation else "no", "status": "done",
           "num-examples": labelled if exchange.stage == "segmenter" else patients}  # fmt: skip
    pairs = [*exchange.said["config"].items(), *exchange.said.get("metrics", {}).items()]
    return [f"{key} is {value}" for key, value in pairs if key in own and value != own[key]]


def test_the_lists_here_are_those_of_the_program() -> None:
    outgoing = {(item.record, item.key): item.kind for item in records.OUTGOING}
    here = {(name, key): kind for said in SAID.values() for name, kinds in said.items() for key, kind in kinds.items()}
    assert outgoing == {**here, ("metrics", "loss"): float}
    incoming = {kind: {item.key: item.kind for item in items} for kind, items in records.INCOMING.items()}
    told = {kind: kinds["config"] for kind, kinds in TOLD.items()}
    assert incoming == {**told, "train": {**ROUND, **SOMETIMES}}


@pytest.mark.parametrize(("name", "sites"), [("private", 3), ("real", 2)])
def test_nothing_unlisted_crosses_the_wire_in_a_private_study(
    name: str, sites: int, request: pytest.FixtureRequest
) -> None:
    walk: Walk = request.getfixturevalue(name)
    assert offences(walk) == []
    asked = [(item.kind, item.stage) for item in walk.exchanges]
    rounds = {"generator": walk.settings.rounds, "segmenter": walk.settings.segmenter.rounds}
    assert asked.count(("query", "")) == sites
    assert all(asked.count(("train", stage)) == sites * number for stage, number in rounds.items())


def test_statistics_are_one_vector_that_answers_a_public_basis(tmp_path: Path) -> None:
    walk = deployed(tmp_path, "rounds=1", "segmenter.rounds=0", "statistics.share=0.5", "statistics.dimension=5")
    assert offences(walk) == []
    assert [item.stage for item in walk.exchanges] == ["", "", "statistics", "statistics", "generator", "generator"]
    assert [list(packing.unpacked(item.said["arrays"])) for item in walk.exchanges[2:4]] == [["statistics"]] * 2


def test_public_arrays_go_to_each_site_once_and_personal_layers_nowhere(tmp_path: Path) -> None:
    """Latent diffusion by adapters on a public base, the norms of which stay at the sites."""
    walk = simulated(
        tmp_path, "generator=latent", "generator.trainable=lora", "generator.rank=1", "prior.steps=2",
        "federation.personal=norms", "segmenter.rounds=0",
    )  # fmt: skip
    model = local_round.build_model(walk.settings, "generator")
    shared, public, personal = (set(shapes_of(model, kind)) for kind in ("shared", "public", "personal"))
    assert all((shared, public, personal))
    told = {"config": {**TOLD["train"]["config"], "public-arrays": str}}
    trained = [exchange for exchange in walk.exchanges if exchange.stage]
    assert len(trained) == 3 * walk.settings.rounds
    for number, exchange in enumerate(trained):
        along = {f"public.{name}" for name in public | personal} if number < 3 else set()  # what they start from
        assert set(packing.unpacked(exchange.asked["arrays"])) == shared | along
        assert set(packing.unpacked(exchange.said["arrays"])) == shared
        assert _odd_records(exchange.asked, told, with_arrays=True) == []
        assert _odd_records(exchange.said, SAID["train"], with_arrays=True) == []
    for site in walk.policies:
        kept = sorted((tmp_path / "run" / "sites" / site / "personal").glob("*/*.safetensors"))
        assert [file.stem for file in kept] == [str(number + 1) for number in range(walk.settings.rounds)]
        assert all(set(load_arrays(file)) == personal for file in kept)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert 0 < result["privacy"]["epsilon"] <= result["privacy"]["epsilon_target"]
    assert {path.name for path in (tmp_path / "run" / "generator").iterdir()} >= {"vae", "unet"}
    assert not any(".base." in name for name, _ in load_generator(tmp_path / "run" / "generator").named_parameters())


def test_without_privacy_the_loss_is_all_that_comes_on_top(ordinary: Walk) -> None:
    with_loss = {**SAID, "train": {**SAID["train"], "metrics": {**SAID["train"]["metrics"], "loss": float}}}
    assert offences(ordinary, with_loss) == []
    assert "metrics: loss of <class 'float'>" in offences(ordinary)


def test_a_real_site_is_told_no_path_and_nothing_of_a_simulation(real: Walk) -> None:
    told = {str(item.asked["config"]["settings"]) for item in real.exchanges}
    assert told == {json.dumps(for_real_sites(real.settings).to_mapping(), sort_keys=True)}
    assert "/the/servers/own" not in "".join(told)


def test_how_long_a_real_site_takes_stands_in_no_file_of_the_run(real: Walk, private: Walk) -> None:
    def seconds(walk: Walk) -> set[str]:
        found = [*csv.DictReader((walk.run / "rounds.csv").read_text().splitlines())]
        kept = json.loads((walk.run / "checkpoint.json").read_text())["rows"]
        assert len(found) == len(kept) > 0
        return {str(row["seconds"]) for row in [*found, *kept]}

    assert seconds(real) == {""}
    assert all(float(figure) > 0 for figure in seconds(private))
    for walk in (real, private):
        assert (walk.run / "report.html").is_file()


@pytest.mark.parametrize("stage", ["generator", "segmenter"])
def test_what_is_averaged_is_weighed_by_the_declared_figures(real: Walk, stage: str) -> None:
    """The weights that the second round starts from are the mean of the first by the policies' figures."""
    rounds = [item for item in real.exchanges if item.stage == stage]
    first, second = rounds[:2], rounds[2]
    weights = np.array([DECLARED[item.site][stage == "segmenter"] for item in first], np.float64)
    for name, array in packing.unpacked(second.asked["arrays"]).items():
        parts = [packing.unpacked(item.said["arrays"])[name].astype(np.float64) for item in first]
        mean = sum(weight * part for weight, part in zip(weights / weights.sum(), parts, strict=True))
        np.testing.assert_allclose(array, mean, rtol=1e-5, atol=1e-6)
        assert np.abs(parts[0] - parts[1]).max() > 1e-4  # so that other weights would show


def put(record: str, key: str, value: Any) -> Callable[[RecordDict], Any]:
    return lambda content: content[record].update({key: value})


PLANTED: Sequence[tuple[str, Callable[[RecordDict], Any]]] = (
    ("record raw", lambda content: content.__setitem__("raw", MetricRecord({"loss": 1.0}))),
    ("record batch", lambda content: content.__setitem__("batch", ArrayRecord([np.zeros((8, 1, 16, 16), np.float32)]))),
    ("record notes", lambda content: content.__setitem__("notes", ConfigRecord({"a": "patient 17"}))),
    ("metrics: loss", put("metrics", "loss", 0.3)),
    ("config: note", put("config", "note", "patient 17")),
    ("num-examples is 12.0", put("metrics", "num-examples", 12.0)),
    ("metrics: num-examples", put("metrics", "num-examples", [40.0, 12.0])),
    ("status is patient 17", put("config", "status", "patient 17")),
    ("a site called 17", put("config", "site", "17")),
    ("array images", lambda content: content.__setitem__("arrays", messages.pack_arrays(
        {**messages.unpack_arrays(content["arrays"]), "images": np.zeros(1, "f4")}))),
    ("float64", lambda content: content.__setitem__("arrays", messages.pack_arrays(
        {key: value.astype(np.float64) for key, value in packing.unpacked(content["arrays"]).items()}))),
    ("(1, ", lambda content: content.__setitem__("arrays", messages.pack_arrays(
        {key: value[None] for key, value in packing.unpacked(content["arrays"]).items()}))),
    ("bytes beside the arrays", lambda content: setattr(
        content["arrays"]["packed"], "data", content["arrays"]["packed"].data + b"patient 17")),
    ("arrays beside what is packed", lambda content: content["arrays"].update(
        {"images": Array(np.zeros((8, 1, 16, 16), np.float32))})),
)  # fmt: skip


@pytest.mark.parametrize(("words", "plant"), PLANTED, ids=[words for words, _ in PLANTED])
def test_the_walk_sees_what_is_planted_in_one_reply(real: Walk, words: str, plant: Callable[[RecordDict], Any]) -> None:
    *before, last = real.exchanges
    said = copied(last.said)
    plant(said)
    found = offences(Walk([*before, replace(last, said=said)], real.settings, real.policies, real.run))
    assert any(words in item for item in found)


def test_the_walk_sees_a_site_that_sends_round_the_door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Site._round

    def leaky(site: Site, *asked: Any) -> egress.Reply:
        reply = plain(site, *asked)
        return replace(reply, metrics={**reply.metrics, "median-age": 61.0})

    monkeypatch.setattr(Site, "_round", leaky)
    monkeypatch.setattr(egress, "check", lambda reply, **_: reply)
    monkeypatch.setattr(messages, "check_answer", lambda _: None)
    found = offences(deployed(tmp_path, "rounds=1", "segmenter.rounds=0"))
    assert found == ["metrics: median-age of <class 'float'>"] * 2
