"""A study of several releases: each asked for once, the generator made sharper by the last, and never paid twice."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedmedgen.models import refinement
from fedmedgen.models.moments import MomentsGenerator
from fedmedgen.models.saving import load_generator
from fedmedgen.privacy.ledger import Ledger, load_key
from server import statistics
from server.run_store import Checkpoint, RunStore
from simulations.run import simulate

WORDS = ("study=demo", "smoke=true", "data.size=[16,16]", "data.max_patients=12", "emission.count=9",
         "evaluation.enabled=false", "generator=moments", "statistics.share=1", "segmenter.rounds=0",
         "prior.phantoms=40", "statistics.rounds=2", "statistics.networks=1", "statistics.network_steps=4",
         "statistics.candidates=3")  # fmt: skip
FILES = ("statistics.safetensors", "statistics-2.safetensors")


def run(folder: Path, *words: str) -> dict[str, Any]:
    simulate([*WORDS, *words], out=str(folder))
    return result(folder)


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())  # type: ignore[no-any-return]


def asked(folder: Path) -> list[tuple[str, str, str]]:
    with (folder / "rounds.csv").open() as file:
        return [(row["stage"], row["round"], row["status"]) for row in csv.DictReader(file)]


def reserved(folder: Path) -> list[dict[str, int]]:
    """Steps of each plan in each site's ledger."""
    found = []
    for place in sorted((folder / "sites").iterdir()):
        ledger = Ledger(place / "ledger.jsonl", key=load_key(place / "site.key"), head_path=place / "ledger.head")
        found += [dict(counted.reserved) for counted in ledger.spent().plans.values()]
    return found


def drawn(folder: Path) -> dict[str, bytes]:
    """Every picture and table of the synthetic set."""
    kept = (path for path in sorted((folder / "synthetic").rglob("*")) if path.suffix in (".png", ".csv", ".npz"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in kept}


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    """Few samples and few features, so that a run takes seconds."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(statistics, "SAMPLES", 300)
        patched.setattr(statistics, "MOST", 12)
        yield


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("refined") / "run"
    run(folder)
    return folder


def test_two_releases_are_paid_at_every_site_and_make_a_set_of_all_classes(unbroken: Path) -> None:
    found = result(unbroken)
    facts = found["metrics"]["statistics"]
    assert (found["status"], facts["rounds"]) == ("completed", 2)
    assert 9.8 < facts["epsilon"] == found["privacy"]["epsilon"] <= 10.0
    assert asked(unbroken) == [("statistics", number, "done") for number in "12" for _ in found["sites"]]
    assert reserved(unbroken) == [{"statistics": 2}] * len(found["sites"])
    with (unbroken / "synthetic" / "labels.csv").open() as file:
        labels = [row["label"] for row in csv.DictReader(file)]
    assert len(labels) == 9
    assert len(set(labels)) == 3


def test_the_generator_that_is_saved_keeps_the_likeliest_of_a_few(unbroken: Path) -> None:
    generator = load_generator(unbroken / "generator")
    assert isinstance(generator, MomentsGenerator)
    known, second = generator.sampler.config, load_file(unbroken / FILES[1])
    assert (known.candidates, known.networks, known.features) == (3, 1, len(second["features.directions"]))
    sent = refinement.to_arrays(generator.sampler.learned)
    assert all(np.array_equal(second[name], value) for name, value in sent.items())


def kill(moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop a run before its second question leaves, once it is answered, or once the answers are averaged and kept."""
    ask, save = statistics.run_stage, RunStore.save

    def asking(grid: Any, rounds: Any, stage: Any, *words: Any, **more: Any) -> Any:
        if stage.rounds == 2 and moment == "asked":
            raise RuntimeError("killed")
        answered = ask(grid, rounds, stage, *words, **more)
        if stage.rounds == 2:
            raise RuntimeError("killed")
        return answered

    def saving(store: RunStore, checkpoint: Checkpoint) -> None:
        if checkpoint.round == 2 and moment == "answered":
            raise RuntimeError("killed")
        save(store, checkpoint)

    monkeypatch.setattr(statistics, "run_stage", asking)
    monkeypatch.setattr(RunStore, "save", saving)


@pytest.mark.parametrize(("moment", "paid"), [("asked", 1), ("answered", 2), ("kept", 2)])
def test_a_run_killed_in_its_second_round_goes_on_to_the_same_set_and_pays_each_round_once(
    tmp_path: Path, unbroken: Path, moment: str, paid: int
) -> None:
    folder = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patched:
        kill(moment, patched)
        with pytest.raises(RuntimeError, match="killed"):
            run(folder)
    assert {steps["statistics"] for steps in reserved(folder)} == {paid}
    first, questions = ((folder / name).stat().st_mtime_ns for name in FILES)
    simulate(resume=str(folder))
    assert (folder / FILES[0]).stat().st_mtime_ns == first
    assert (folder / FILES[1]).stat().st_mtime_ns > questions
    assert reserved(folder) == reserved(unbroken)
    assert asked(folder) == asked(unbroken)
    for name in FILES:
        one, other = load_file(unbroken / name), load_file(folder / name)
        assert all(np.array_equal(one[key], other[key]) for key in one | other)
    assert drawn(folder) == drawn(unbroken)
    assert len(drawn(folder)) > 9


def test_without_privacy_the_second_round_runs_as_well(tmp_path: Path) -> None:
    found = run(tmp_path / "run", "privacy=none", "statistics.dimension=8")
    assert (found["status"], found["privacy"]["epsilon"]) == ("completed", None)
    assert {number for _, number, _ in asked(tmp_path / "run")} == {"1", "2"}
