"""The study of a rare class: which sets a classifier is trained on, and that a cell runs to its row."""

import csv
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from fedmedgen.composition import compose
from fedmedgen.data.cases import CaseSet
from fedmedgen.data.partition import held
from fedmedgen.errors import RunError
from simulations import grid, rare_class
from simulations.grid_file import load

WORDS = ["study=demo", "smoke=true", "rounds=1", "segmenter.rounds=0", "data.size=[16,16]", "emission.count=16",
         "data.classes=[normal,opacity]", "evaluation.enabled=false"]  # fmt: skip
RARE = ["data.rare_class=opacity", "data.rare_patients=4", "data.max_patients=0"]


def counts(cases: CaseSet) -> Counter[int | None]:
    return Counter(case.label for case in cases)


def test_the_training_sets_differ_by_what_they_say() -> None:
    settings = compose([*WORDS, *RARE])
    cases = held(settings.data, 0)
    synthetic = cases.loaded.with_cases([replace(case, site="synthetic") for case in cases.loaded.cases[:30]])
    sets = rare_class.training_sets(settings, cases.parts, synthetic)
    real, drawn = counts(sets["real"]), counts(synthetic)
    assert len({(case.site, case.patient) for case in sets["real"] if case.label == 1}) == 4
    both = sets["real_and_synthetic"]
    for label in (0, 1):
        made = sum(case.label == label and case.site == "synthetic" for case in both)
        assert made == max(real[label], drawn[label]) == counts(both)[label] - made
    assert {id(case) for case in both} == {id(case) for case in (*sets["real"], *synthetic)}
    assert {case.site for case in sets["one_site"]} == {min(cases.parts)}
    assert counts(sets["real_uncut"])[0] == real[0]
    assert counts(sets["real_uncut"])[1] > 5 * real[1]
    assert not [case for case in sets["real_uncut"] if case.split != "train"]


def test_a_cell_becomes_a_row_with_the_recall_of_each_training_set_and_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grid, "RUNS", tmp_path / "runs")
    pair = ["trial/real_and_synthetic", "trial/real"]
    file = tmp_path / "rare.yaml"
    cell = {"name": "trial", "overrides": [*WORDS, *RARE], "seeds": [0]}
    file.write_text(yaml.safe_dump(
        {"title": "Rare", "cells": [cell], "measures": ["recall_opacity"], "compare": [pair]}
    ))  # fmt: skip
    assert rare_class.main(["--grid", str(file), "--out", str(tmp_path)]) == 0
    with (tmp_path / "rare.csv").open(newline="") as stream:
        (row,) = csv.DictReader(stream)
    assert row["status"] == "completed", row["reason"]
    for name in ("real", "real_and_synthetic", "one_site", "one_site_and_synthetic", "real_uncut", "tstr"):
        assert 0 <= float(row[f"{name}_recall_opacity"]) <= 1
    page = (tmp_path / "rare.md").read_text()
    assert "| trial/real_and_synthetic − trial/real | recall opacity | 1 |" in page
    assert "`python -m simulations.rare_class --out" in page


def test_a_study_without_a_rare_class_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"data\.rare_class"):
        rare_class.measured([*WORDS, "seed=0"], tmp_path / "run")


def test_the_studys_own_grid_names_a_rare_class_in_each_cell() -> None:
    plan = load(Path(rare_class.GRID))
    assert all(compose(list(plan.words(cell))).data.rare_class for cell in plan.cells)
