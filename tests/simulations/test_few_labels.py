"""The few-labels study: every row marks lungs, cells are computed once, gains are paired by draw."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from fedmedgen.composition import compose
from fedmedgen.data.partition import held
from fedmedgen.emission.writing import write_set
from fedmedgen.federation import local_round, plan
from fedmedgen.models.denoiser import Denoiser
from fedmedgen.models.saving import save_generator
from fedmedgen.settings import Settings
from fedmedgen.training.checkpoints import save_arrays
from simulations import few_labels, few_labels_ablations, few_labels_rows
from simulations.few_labels_ablations import ABLATIONS, source_of
from simulations.few_labels_page import page
from simulations.few_labels_pretraining import LUNGS
from simulations.few_labels_rows import ROWS, Cell, denoiser_of, fresh, pretrained, tuned
from simulations.few_labels_tasks import TASKS, Task

TINY = ("study=demo", "smoke=true", "privacy=none", "data.size=[32,32]", "generator.with_masks=false",
        "segmenter.local_steps=2", "segmenter.batch_size=2", "segmenter.warp=true", "data.max_patients=30")  # fmt: skip


@pytest.fixture(scope="module")
def settings():
    return compose(TINY)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, settings):
    """A denoiser of known weights where every pre-training would leave its own."""
    folder = tmp_path_factory.mktemp("runs")
    denoiser = local_round.build_model(settings, plan.GENERATOR)
    assert isinstance(denoiser, Denoiser)
    for name in {source_of(row) for row in ROWS} - {None} | set(LUNGS):
        save_generator(denoiser, folder / f"pretrain-{name}" / "generator", card={})
        (folder / f"pretrain-{name}" / "checkpoint").mkdir()
        arrays = {f"weights/{key}": value.detach() for key, value in denoiser.named_parameters()}
        save_arrays(folder / f"pretrain-{name}" / "checkpoint" / "generator-3.safetensors", arrays)
        if name.startswith("pairs"):
            write_run_of_pairs(folder / f"pretrain-{name}", settings)
    return folder


def write_run_of_pairs(folder: Path, settings: Settings) -> None:
    drawn = held(settings.data, settings.seed).loaded
    write_set(drawn.with_cases(drawn.cases[:9]), folder / "synthetic", datasheet={})
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings.to_mapping()))
    (folder / "result.json").write_text("{}")


@pytest.fixture
def cell(settings, runs):
    pool = list(held(settings.data, settings.seed).loaded.of_split("train"))[:12]
    return Cell("scratch", 2, 0, 1e-3, settings, pool[:2], pool, runs)


@pytest.mark.parametrize("row", ROWS)
def test_every_row_marks_every_pixel_of_every_image(cell, row):
    assert pretrained(source_of(row), cell.runs)
    predict = ROWS[row](replace(cell, row=row))
    with torch.no_grad():
        masks = predict(torch.from_numpy(np.stack([case.image for case in cell.pool])))
    assert masks.shape == (12, 32, 32)
    assert set(masks.unique().tolist()) <= {0, 1, 2}


@pytest.mark.parametrize("row", ABLATIONS)
def test_every_change_marks_every_pixel_too(cell, row):
    predict = ABLATIONS[row](replace(cell, row=row))
    with torch.no_grad():
        assert predict(torch.from_numpy(np.stack([case.image for case in cell.pool]))).shape == (12, 32, 32)


def test_only_the_layers_named_are_trained(cell, monkeypatch):
    kept = []

    def look(model, cell, cases, *, steps):
        kept.append(tuned(model, cell, cases, steps=steps))
        return kept[0]

    monkeypatch.setattr(few_labels_ablations, "tuned", look)
    few_labels_ablations.some_layers(cell, ("up_blocks",))
    before = denoiser_of(replace(cell, row="ptdr-federated")).unet.state_dict()
    after = kept[0].unet.state_dict()
    changed = {name.partition(".")[0] for name in after if not torch.equal(after[name], before[name])}
    assert changed == {"up_blocks", "conv_norm_out", "conv_out"}


def test_a_row_waits_for_its_pretraining(cell, tmp_path):
    waiting = {row for row in (*ROWS, *ABLATIONS) if not pretrained(source_of(row), tmp_path)}
    alone = {"mean-mask", "scratch", "scratch-2x", "self-training", "scratch-fedavg", "scratch without warp"}
    assert waiting == {*ROWS, *ABLATIONS} - alone
    assert {source_of(row) for row in waiting} == set().union(*(task.pretrained for task in TASKS.values()))


def test_a_hospitals_own_pretraining_is_of_the_hospital_whose_masks_there_are():
    for task in TASKS.values():
        for name, run in task.pretrained.items():
            if name.startswith("local") and task.labelled_at in ("shenzhen", "montgomery"):
                assert compose([*run.common, *run.words]).data.only == (task.labelled_at,), name


def test_what_self_training_labels_has_the_classes_of_its_pool(settings, cell, monkeypatch):
    named = [replace(cell.pool[0], name=f"{number:04d}", label=int(number >= 300)) for number in range(600)]
    seen = []
    monkeypatch.setattr(few_labels_rows, "scratch", lambda _: lambda images: torch.zeros(len(images), 32, 32))
    monkeypatch.setattr(few_labels_rows, "tuned", lambda model, _, cases, **__: seen.append(cases) or model)
    few_labels_rows.self_training(replace(cell, pool=named, labelled=named[:2]))
    marked = {case.name for case in seen[0]} - {"0000", "0001"}
    assert len(marked) == few_labels_rows.PSEUDO
    assert 0.4 < sum(int(name) >= 300 for name in marked) / len(marked) < 0.6


def test_a_cell_that_breaks_off_is_taken_again_and_a_line_cut_short_is_dropped(cell, tmp_path):
    cells = few_labels.Cells(tmp_path / "few.csv", tmp_path)
    row = dict.fromkeys(few_labels.FIELDS, "1")
    cells.add([row])
    with cells.path.open("a") as file:
        file.write("scratch,5,0,0.0")
    assert cells.read() == [row]
    cells.add([row])
    assert cells.read() == [row, row]
    assert cells.take(cell)
    assert not cells.take(cell)
    cells.give_back(cell)
    assert cells.take(cell)


def test_ptdr_starts_from_the_whole_denoiser_and_scratch_from_none_of_it(cell):
    denoiser = denoiser_of(replace(cell, row="ptdr-federated"))
    started = local_round.segmenter_of(denoiser, cell.settings).unet.state_dict()
    before = denoiser.unet.state_dict()
    changed = {name for name, value in started.items() if not torch.equal(value, before[name])}
    assert changed == {"conv_out.weight", "conv_out.bias"}
    own = fresh(cell).unet.state_dict()
    assert not torch.equal(own["conv_in.weight"], started["conv_in.weight"])


def test_fewer_labels_are_among_more_and_other_draws_are_others(cell):
    drawn = [{case.name for case in few_labels._drawn(cell.pool, count, 0)} for count in (1, 2, 5)]
    assert drawn[0] < drawn[1] < drawn[2]
    assert {case.name for case in few_labels._drawn(cell.pool, 5, 1)} != drawn[2]


def test_nobody_is_labelled_and_validated_on(settings):
    pool, validation, test = few_labels.sides(settings, Task(words=TINY, labelled_at="site-1", validation=3))
    patients = [{(case.site, case.patient) for case in part} for part in (pool, validation, test)]
    assert all(patient for part in patients for _, patient in part)
    assert len(pool) > len(patients[0])  # some have several images
    assert len(patients[0] | patients[1] | patients[2]) == sum(map(len, patients))
    assert {case.site for case in pool} == {"site-1"}


def test_rates_are_chosen_without_a_look_at_the_test_patients(settings, tmp_path, monkeypatch):
    task = Task(words=TINY, labelled_at="site-1", counts=(1,), draws=1, validation=3)
    _, validation, test = few_labels.sides(settings, task)
    looked = []

    def pretend(one, on):
        looked.append({(case.site, case.patient) for case in on})
        return [dict.fromkeys(few_labels.FIELDS, "") | {
            "row": one.row, "labels": one.labels, "draw": one.draw, "rate": one.rate, "site": "all", "dice": 0.9,
        }]  # fmt: skip

    monkeypatch.setattr(few_labels, "measured", pretend)
    monkeypatch.setitem(TASKS, "lungs", task)
    assert few_labels.main(["--out", str(tmp_path), "--runs", str(tmp_path), "--rows", "scratch"]) == 0
    apart, unseen = ({(case.site, case.patient) for case in part} for part in (validation, test))
    assert looked == [*[apart] * len(task.rates), unseen]


def test_fedavg_takes_as_many_steps_and_averages_by_labels(cell, monkeypatch):
    kept: list[torch.nn.Module] = []

    def look(model, cell, cases, *, steps: int, after: int = 0):
        taken.append((steps, after, {case.site for case in cases}))
        with torch.no_grad():
            model.get_parameter("unet.conv_out.bias").fill_(float(len(cases)))
        return model

    taken: list[tuple[int, int, set[str]]] = []
    monkeypatch.setattr(few_labels_rows, "tuned", look)
    monkeypatch.setattr(few_labels_rows, "masks_of", lambda model: kept.append(model))
    labelled = [replace(case, site=site) for case, site in zip(cell.pool, ("a", "a", "a", "b"), strict=False)]
    settings = replace(cell.settings, segmenter=replace(cell.settings.segmenter, local_steps=9))
    few_labels_rows.fedavg(replace(cell, labelled=labelled, settings=settings), fresh)
    assert taken == [(3, after, {site}) for after in (0, 3, 6) for site in ("a", "b")]
    assert set(kept[0].get_parameter("unet.conv_out.bias").tolist()) == {(3 * 3 + 1 * 1) / 4}


def test_cells_are_taken_once_and_measured_by_site(cell, tmp_path):
    cells = few_labels.Cells(tmp_path / "few-labels.csv", tmp_path)
    assert cells.take(cell)
    assert not cells.take(cell)
    test = held(cell.settings.data, cell.settings.seed).loaded.of_split("test")
    found = few_labels.measured(replace(cell, row="mean-mask"), test)
    assert [row["site"] for row in found] == ["all", *test.sites]
    cells.add(found)
    (tmp_path / "few-labels-taken").rename(tmp_path / "gone")
    assert not cells.take(replace(cell, row="mean-mask"))  # done, whatever marks are left
    assert cells.take(cell)


def test_the_rate_is_the_best_on_validation_and_measured_once(cell, tmp_path, monkeypatch):
    cells, asked = few_labels.Cells(tmp_path / "few-labels.csv", tmp_path), []

    def pretend(one, test):
        asked.append(one.rate)
        dice = {1e-3: 0.7, 3e-3: 0.9, 6e-3: 0.8}[one.rate]
        return [dict.fromkeys(few_labels.FIELDS, "") | {
            "row": one.row, "labels": one.labels, "draw": one.draw, "rate": one.rate, "site": "all", "dice": dice,
        }]  # fmt: skip

    monkeypatch.setattr(few_labels, "measured", pretend)
    test = held(cell.settings.data, cell.settings.seed).loaded.of_split("test")
    for _ in range(2):
        assert few_labels.tuned_rate("scratch", cells, cell.settings, list(cell.pool), test) == 3e-3
    assert len(asked) == 3


def test_gains_are_paired_by_draw(tmp_path):
    dice = {("scratch", 0): 0.90, ("scratch", 1): 0.92, ("ptdr-federated", 0): 0.91, ("ptdr-federated", 1): 0.95}
    path = tmp_path / "few-labels.csv"
    few_labels.Cells(path, tmp_path).add(
        [
            {"row": row, "labels": 5, "draw": draw, "rate": 1e-3, "site": site, "dice": value, "hd95": 3.0, "missed": 0,
             "seconds": 1, "commit": "abc", "date": f"2026-01-0{draw + 1}"}
            for (row, draw), value in dice.items() for site in ("all", "here")
        ]
    )  # fmt: skip
    with path.open(newline="") as file:
        text = "\n".join(page(list(csv.DictReader(file))))
    assert "- 2026-01-01 to 2026-01-02, commits abc, " in text
    assert "| ptdr-federated | +2.0 | +2.00 (-10.71 to +14.71) | 2 |" in text
    assert "| scratch | 0.910 (2) | 0.910 (2) |" in text


def test_counts_of_one_draw_are_no_draws_of_their_own(tmp_path):
    gains = {(1, 0): 0.02, (5, 0): 0.02, (1, 1): 0.04, (5, 1): 0.04}
    rows = [
        {"row": row, "labels": labels, "draw": draw, "rate": 1e-3, "site": "all", "dice": 0.9 + more, "hd95": 3.0,
         "commit": "abc", "date": "2026-01-01"}
        for (labels, draw), gain in gains.items() for row, more in (("scratch", 0.0), ("ptdr-federated", gain))
    ]  # fmt: skip
    assert "| ptdr-federated | +3.0 | +3.0 | +3.00 (-9.71 to +15.71) | 2 |" in "\n".join(page(rows))


def test_every_task_composes_and_has_its_own_page(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDMEDGEN_DATA", str(tmp_path))
    for name, task in TASKS.items():
        own = compose(task.words).data
        assert own.mask_classes
        for run in task.pretrained.values():
            asked = compose([*run.common, *run.words])
            assert asked.data.size == own.size
            assert plan.stages(asked)[-1].name in ("generator", "statistics")
        assert name in "\n".join(page([], name))


def test_a_task_refuses_a_pretraining_that_it_lacks(tmp_path, capsys):
    with pytest.raises(SystemExit):
        few_labels.main(["--runs", str(tmp_path), "--task", "caries", "--pretrain", "eps10"])
    assert "caries is pre-trained as local, federated, federated-low, phantoms" in capsys.readouterr().err


def test_a_page_without_cells_says_how_to_make_them():
    assert few_labels.__name__ in "\n".join(page([]))


def test_the_runs_folder_decides_what_is_pretrained(tmp_path: Path, monkeypatch):
    said = []
    monkeypatch.setattr("simulations.few_labels_pretraining.simulate", lambda words, out: said.append((words, out)))
    (tmp_path / "pretrain-local").mkdir()
    (tmp_path / "pretrain-local" / "result.json").write_text("{}")
    assert few_labels.main(["--runs", str(tmp_path), "--pretrain", "local", "eps10"]) == 0
    assert [out for _, out in said] == [str(tmp_path / "pretrain-eps10")]
    assert "privacy=eps10" in said[0][0]
