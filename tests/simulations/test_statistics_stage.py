"""A study whose statistics come first: paid at every site, taught from, measured, and never paid twice."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import load_file

from fedmedgen.data.cases import CaseSet
from fedmedgen.errors import FederationError
from fedmedgen.models.moments import MomentsGenerator
from fedmedgen.models.pipeline import to_pixels
from fedmedgen.models.saving import load_generator
from fedmedgen.privacy.ledger import Ledger, load_key
from fedmedgen.privacy.spending import Spending
from fedmedgen.settings import Settings
from server import finishing, stages
from server.prior import public_cases
from simulations.run import simulate

WORDS = ("study=demo", "smoke=true", "data.size=[16,16]", "data.max_patients=12", "emission.count=6")
FIRST = ("statistics.share=0.5", "curriculum.steps=5", "segmenter.rounds=0")
ALONE = ("generator=moments", "statistics.share=1", "segmenter.rounds=0")


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Each evaluation's cheap set, instead of its minutes."""
    seen: list[Any] = []

    def note(*_: Any, **options: Any) -> dict[str, Any]:
        seen.append(options["cheap"])
        return {"classification": {"skipped": "not measured here"}}

    monkeypatch.setattr(finishing, "evaluate", note)
    return seen


def run(folder: Path, *words: str) -> dict[str, Any]:
    return result(simulate([*WORDS, *words], out=str(folder)))


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())  # type: ignore[no-any-return]


def rows(folder: Path) -> Sequence[dict[str, str]]:
    with (folder / "rounds.csv").open() as file:
        return list(csv.DictReader(file))


def spent(folder: Path, site: str = "site-1") -> Spending:
    place = folder / "sites" / site
    return Ledger(place / "ledger.jsonl", key=load_key(place / "site.key"), head_path=place / "ledger.head").spent()


def test_statistics_come_first_are_paid_by_every_site_and_teach_the_denoiser(
    tmp_path: Path, measured: list[Any]
) -> None:
    found = run(tmp_path / "run", *FIRST)
    folder = tmp_path / "run"
    assert (found["status"], list(found["stage_seconds"])[2:6]) == (
        "completed", ["prior", "statistics", "curriculum", "generator"],
    )  # fmt: skip
    first = rows(folder)[:3]
    assert [(row["stage"], row["round"], row["status"]) for row in first] == [("statistics", "1", "done")] * 3
    facts = found["metrics"]["statistics"]
    assert float(first[0]["epsilon"]) == facts["epsilon"] <= 5.0 < found["privacy"]["epsilon"] <= 10.0
    for site in found["sites"]:
        (counted,) = spent(folder, site).plans.values()
        assert counted.reserved == {"statistics": 1, "generator": 4}
        assert counted.epsilon == found["sites"][site]["epsilon_run"]
    assert isinstance(measured[0], CaseSet)
    assert len(measured[0]) == 6
    assert isinstance(load_generator(folder / "cheap"), MomentsGenerator)
    assert not isinstance(load_generator(folder / "generator"), MomentsGenerator)
    assert (folder / "report.html").is_file()


def test_the_release_alone_is_the_generator_and_no_round_follows(tmp_path: Path, measured: list[Any]) -> None:
    found = run(tmp_path / "run", *ALONE)
    assert (found["status"], measured) == ("completed", [None])
    assert {row["stage"] for row in rows(tmp_path / "run")} == {"statistics"}
    assert found["privacy"]["noise_multiplier"] is None
    assert 9.8 < found["privacy"]["epsilon"] == found["metrics"]["statistics"]["epsilon"] <= 10.0
    assert isinstance(load_generator(tmp_path / "run" / "generator"), MomentsGenerator)
    assert not (tmp_path / "run" / "cheap").exists()


@pytest.mark.parametrize("words", [FIRST, (*ALONE, "statistics.kind=kernel-mean", "statistics.features=16")])
def test_without_privacy_the_same_stages_run(tmp_path: Path, measured: list[Any], words: tuple[str, ...]) -> None:
    found = run(tmp_path / "run", "privacy=none", *words)
    assert (found["status"], found["privacy"]["epsilon"]) == ("completed", None)
    assert found["metrics"]["statistics"]["epsilon"] is None
    assert rows(tmp_path / "run")[0]["stage"] == "statistics"


def test_a_run_killed_in_its_rounds_asks_and_teaches_nothing_twice(
    tmp_path: Path, measured: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    run(unbroken, *FIRST)
    plain = stages.run_stage

    def killed(grid: Any, rounds: Any, stage: Any, *words: Any, **more: Any) -> Any:
        if stage.name == "generator":
            raise FederationError("killed")
        return plain(grid, rounds, stage, *words, **more)

    monkeypatch.setattr(stages, "run_stage", killed)
    with pytest.raises(FederationError, match="killed"):
        run(broken, *FIRST)
    monkeypatch.setattr(stages, "run_stage", plain)
    written = {
        name: (broken / name).stat().st_mtime_ns for name in ("statistics.safetensors", "curriculum.safetensors")
    }
    for name in written:
        one, other = (load_file(folder / name) for folder in (unbroken, broken))
        assert all(np.array_equal(one[key], other[key]) for key in one | other)
    simulate(resume=str(broken))
    assert written == {name: (broken / name).stat().st_mtime_ns for name in written}
    (counted,) = spent(broken).plans.values()
    assert counted.reserved == {"statistics": 1, "generator": 4}
    assert [row["stage"] for row in rows(broken)] == [row["stage"] for row in rows(unbroken)]
    assert result(broken)["privacy"]["epsilon"] == result(unbroken)["privacy"]["epsilon"]


def test_a_run_killed_before_the_sum_was_kept_is_answered_free(
    tmp_path: Path, measured: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = stages.release

    def killed(*words: Any) -> None:
        plain(*words)
        raise FederationError("killed")

    monkeypatch.setattr(stages, "release", killed)
    with pytest.raises(FederationError, match="killed"):
        run(tmp_path / "run", *FIRST)
    monkeypatch.setattr(stages, "release", plain)
    kept = load_file(tmp_path / "run" / "statistics.safetensors")
    for name in ("checkpoint.json", "statistics.safetensors"):
        (tmp_path / "run" / name).unlink()
    simulate(resume=str(tmp_path / "run"))
    again = load_file(tmp_path / "run" / "statistics.safetensors")
    assert np.array_equal(kept["statistics"], again["statistics"])
    (counted,) = spent(tmp_path / "run").plans.values()
    assert counted.reserved["statistics"] == 1


def test_texture_is_taken_from_public_images_and_never_from_their_masks(tmp_path: Path, measured: list[Any]) -> None:
    run(tmp_path / "run", *ALONE, "prior.phantoms=40")
    generator = load_generator(tmp_path / "run" / "generator")
    assert isinstance(generator, MomentsGenerator)
    assert generator.sampler.residuals is not None
    assert generator.sampler.residuals.shape[1] > 1
    assert float(generator.sampler.residuals[:, 0].abs().mean()) > 0.01
    assert not generator.sampler.residuals[:, 1:].any()


@pytest.mark.parametrize("shapes", [(), ("statistics.mask_slope=8", "statistics.mask_weight=3")])
def test_with_the_nearest_public_image_comes_its_mask_into_the_set(
    tmp_path: Path, measured: list[Any], shapes: tuple[str, ...]
) -> None:
    run(tmp_path / "run", *ALONE, "prior.phantoms=40", "prior.nearest=true", "prior.varied=true", *shapes)
    generator = load_generator(tmp_path / "run" / "generator")
    settings = Settings.from_mapping(yaml.safe_load((tmp_path / "run" / "settings.yaml").read_text()))
    known = {case.mask.tobytes() for case in public_cases(settings) if case.mask is not None}
    _, drawn = to_pixels(generator.draw(torch.zeros(10).long(), range(10)))
    assert drawn is not None
    assert all(mask.any() for mask in drawn)
    assert {mask.tobytes() for mask in drawn} <= known
