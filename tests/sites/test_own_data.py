"""Which patients take part at a real site: neither a server nor another patient decides."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.data import get_testdata_file

from fedmedgen.composition import compose
from fedmedgen.data import folders
from fedmedgen.data.cases import CaseSet
from fedmedgen.federation import local_round, own_data, records
from fedmedgen.federation.local_round import LocalResult, LocalRound
from fedmedgen.federation.own_data import own_cases
from fedmedgen.federation.policy import SitePolicy
from fedmedgen.privacy.mechanism import StagePlan
from fedmedgen.privacy.randomness import Stream
from fedmedgen.settings import Settings

PATIENTS = 24


@pytest.fixture
def trained_on(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], list[str]]:
    """The patients that reach a round at a site."""
    seen: list[str] = []

    def look(asked: object, arrays: dict[str, np.ndarray], cases: CaseSet, *, stream: object) -> LocalResult:
        seen.extend(cases.by_patient())
        return LocalResult(arrays, None)

    def ask(server: Any) -> list[str]:
        seen.clear()
        assert server.ask().config[records.STATUS] == records.DONE
        return seen

    monkeypatch.setattr(local_round, "run", look)
    return ask


def copied(films: Path, folder: Path) -> Path:
    shutil.copytree(films, folder)
    return folder


@pytest.mark.parametrize(
    "word",
    ["data.min_patients=24", "data.min_patients=1000", "data.test_share=0.9", "seed=7", "data.max_patients=1",
     "data.classes=[]", "data.partition=even", "data.columns.patient=label", "data.root=/server/says/so"],
)  # fmt: skip
def test_nothing_a_server_asks_decides_which_patients_take_part(policy: SitePolicy, word: str) -> None:
    asked = compose(["study=demo", "smoke=true", "data.size=[16,16]", word])
    assert len(own_cases(policy, asked).by_patient()) == PATIENTS


def test_a_patient_in_two_folders_of_a_site_is_one_unit(
    server: Any, films: Path, tmp_path: Path, trained_on: Callable[[Any], list[str]]
) -> None:
    for year in ("2023", "2024"):
        copied(films, tmp_path / "films" / year)
    several = server.at(data_root=str(tmp_path / "films"), data_layout="folders")
    assert len(trained_on(several)) == PATIENTS


def test_a_case_without_a_patient_is_left_out_and_moves_no_other(
    server: Any, films: Path, tmp_path: Path, trained_on: Callable[[Any], list[str]]
) -> None:
    table = copied(films, tmp_path / "films") / "labels.csv"
    lines = table.read_text().splitlines()
    lines[1] = lines[1].rpartition(",")[0] + ","
    table.write_text("\n".join(lines) + "\n")
    assert len(trained_on(server.at(data_root=str(tmp_path / "films")))) == PATIENTS


def test_a_patient_whose_label_name_is_odd_moves_no_other(
    server: Any, films: Path, tmp_path: Path, trained_on: Callable[[Any], list[str]]
) -> None:
    table = copied(films, tmp_path / "films") / "labels.csv"
    lines = table.read_text().splitlines()
    cells = lines[1].split(",")
    lines[1] = ",".join([cells[0], cells[1], "nodule", *cells[3:]])
    table.write_text("\n".join(lines) + "\n")
    assert len(trained_on(server.at(data_root=str(tmp_path / "films")))) == PATIENTS


@pytest.mark.parametrize(
    "line",
    [
        '"never,0,closed,p99',
        "\0,0,normal,p99",
        "\udcff.png,0,normal,p99",
        "x" * 200_000,
        '"two\nlines.png",0,normal,p99',
    ],
    ids=["quote", "nul", "no UTF-8", "long", "two lines"],
)
@pytest.mark.parametrize("place", [1, 9])
def test_a_line_of_the_table_that_cannot_be_read_moves_no_other(
    server: Any, films: Path, tmp_path: Path, trained_on: Callable[[Any], list[str]], line: str, place: int
) -> None:
    table = copied(films, tmp_path / "films") / "labels.csv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join([*lines[:place], line, *lines[place:]]) + "\n", errors="surrogateescape")
    assert len(trained_on(server.at(data_root=str(tmp_path / "films")))) == PATIENTS


def test_a_line_that_claims_another_patients_picture_takes_it_from_nobody(
    server: Any, films: Path, tmp_path: Path, trained_on: Callable[[Any], list[str]]
) -> None:
    table = copied(films, tmp_path / "films") / "labels.csv"
    lines = table.read_text().splitlines()
    claim = lines[1].rpartition(",")[0] + ",p99"
    table.write_text("\n".join([lines[0], claim, *lines[1:]]) + "\n")
    found = own_cases(replace(server.policy, data_root=str(tmp_path / "films")), server.settings).by_patient()
    assert {unit: len(cases) for unit, cases in found.items()} == {
        **{f"north/p{number}": 2 for number in range(PATIENTS)},
        "north/p99": 1,
    }


def test_where_the_unit_is_the_image_one_with_a_patient_moves_no_other(
    server: Any, films: Path, tmp_path: Path
) -> None:
    table = copied(films, tmp_path / "films") / "labels.csv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join([*lines[:2], *(line.rpartition(",")[0] + "," for line in lines[2:])]) + "\n")
    policy = replace(server.policy, data_root=str(tmp_path / "films"), unit="image")
    units = own_cases(policy, server.settings).by_patient()
    assert [len(cases) for cases in units.values()] == [1] * (2 * PATIENTS)


@pytest.mark.parametrize("how", ["cut short", "text", "empty", "gone", "a folder"])
def test_a_patient_whose_file_has_gone_bad_moves_no_other(
    server: Any, films: Path, tmp_path: Path, trained_on: Callable[[Any], list[str]], how: str
) -> None:
    folder = copied(films, tmp_path / "films")
    name = (folder / "labels.csv").read_text().splitlines()[1].split(",")[0]
    (image,) = folder.rglob(f"images/{Path(name).name}")
    content = image.read_bytes()
    image.unlink()
    if how == "a folder":
        image.mkdir()
    elif how != "gone":
        image.write_bytes({"cut short": content[: len(content) // 2], "text": b"patient 17", "empty": b""}[how])
    assert len(trained_on(server.at(data_root=str(tmp_path / "films")))) == PATIENTS


def test_data_that_cannot_be_read_yield_a_reply_of_pure_noise(server: Any, caplog: pytest.LogCaptureFixture) -> None:
    good, lost = server.ask(), server.at(data_root="/no/such/folder/of/patient-17")
    reply = lost.ask(run="run-2") if not lost.spent else lost.at(folder=lost.policy.folder + "-2").ask()
    assert (reply.config, reply.metrics) == (good.config, good.metrics)
    assert {key: value.shape for key, value in reply.arrays.items()} == {k: v.shape for k, v in good.arrays.items()}
    assert "the reply is noise" in caplog.text


def test_a_round_that_fails_on_its_data_yields_noise_and_tells_nothing(
    server: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain = local_round.run

    def broken(asked: LocalRound, arrays: dict[str, np.ndarray], cases: CaseSet, *, stream: Stream) -> LocalResult:
        if len(cases):
            raise ValueError("patient 17 has a rare disease")
        return plain(asked, arrays, cases, stream=stream)

    monkeypatch.setattr(local_round, "run", broken)
    reply = server.ask()
    assert reply.config == {records.SITE: "north", records.STATUS: records.DONE}
    assert "the reply is noise" in caplog.text


@pytest.mark.parametrize("where", ["choose", "draw_rows"])
def test_one_patients_fault_inside_a_round_leaves_the_others_in_it(
    server: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    """Were the whole round to turn into noise, one patient would have moved the sum of all."""
    plain, drawn = getattr(local_round, where), []

    def broken(*words: Any) -> Any:
        cases = words[3] if where == "draw_rows" else words[0]
        if str(cases[0].patient).endswith("p3"):
            raise OSError("a file of patient p3 can't be read")
        drawn.append(cases[0].patient)
        return plain(*words)

    monkeypatch.setattr(local_round, where, broken)
    monkeypatch.setattr(StagePlan, "draw", lambda *words: np.arange(words[-1]))  # every patient is drawn
    reply = server.ask()
    assert reply.config == {records.SITE: "north", records.STATUS: records.DONE}
    assert len(set(drawn) - {None}) == PATIENTS - 1  # the self-check draws rows of no patient
    assert "contributes zero" in caplog.text
    assert "the reply is noise" not in caplog.text


def units(policy: SitePolicy, settings: Settings, **changes: Any) -> dict[str, int]:
    """The units that take part at a site, and how many images each has."""
    return {unit: len(cases) for unit, cases in own_cases(replace(policy, **changes), settings).by_patient().items()}


@pytest.mark.parametrize("trouble", [PermissionError(13, "no"), OSError(5, "disk"), MemoryError(), RecursionError()])
def test_a_picture_that_cannot_be_opened_moves_no_other(
    server: Any, films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: Exception
) -> None:
    folder, plain = copied(films, tmp_path / "films"), folders.read_grey
    name = (folder / "labels.csv").read_text().splitlines()[1].split(",")[0]

    def read(path: Path) -> Any:
        if path.name == Path(name).name:
            raise trouble
        return plain(path)

    monkeypatch.setattr(folders, "read_grey", read)
    found = units(server.policy, server.settings, data_root=str(folder))
    assert sorted(found.values()) == [1, *[2] * (PATIENTS - 1)]


def test_a_picture_keeps_its_mask_whatever_another_patient_brings(server: Any, films: Path, tmp_path: Path) -> None:
    policy = replace(server.policy, data_root=str(copied(films, tmp_path / "films")))
    before = {case.name: case.mask for case in own_cases(policy, server.settings)}
    first, table = sorted(before)[0], tmp_path / "films" / "labels.csv"
    images, masks = tmp_path / "films" / "images", tmp_path / "films" / "masks"
    _, line = table.read_text().splitlines()[:2]
    other = images / Path(first).with_suffix(".bmp").name
    Image.open(images / first).save(other)
    Image.open(masks / first).rotate(90).save(masks / other.name)
    cells = line.split(",")
    table.write_text(table.read_text() + ",".join([other.name, *cells[1:-1], "p99"]) + "\n")
    own_data._read.cache_clear()
    after = {case.name: case.mask for case in own_cases(policy, server.settings)}
    assert len(after) == len(before) + 1
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_a_folder_called_images_below_one_patient_hides_no_other(server: Any, tmp_path: Path) -> None:
    for number in range(4):
        place = tmp_path / "tree" / f"P{number}" / ("images" if number == 3 else "")
        place.mkdir(parents=True)
        shutil.copy(get_testdata_file("CT_small.dcm"), place / "a.dcm")
        header = dcmread(place / "a.dcm")
        header.PatientID, header.Modality = f"p{number}", "CR"
        header.save_as(place / "a.dcm")
    asked = replace(server.settings, data=replace(server.settings.data, classes=(), mask_classes=()))
    found = units(server.policy, asked, data_root=str(tmp_path / "tree"), data_layout="dicom")
    assert found == {f"north/p{number}": 1 for number in range(4)}


@pytest.mark.parametrize("labels", [[1] * 10, [0, *[1] * 10], [7, *[1] * 10]])
def test_without_classes_no_label_of_an_npz_is_read(server: Any, tmp_path: Path, labels: list[int]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 16, 16)).astype(np.uint8)
    np.savez(tmp_path / "set.npz", train_images=images, train_labels=np.array(labels))
    asked = replace(server.settings, data=replace(server.settings.data, classes=(), mask_classes=()))
    policy = replace(server.policy, data_root=str(tmp_path / "set.npz"), data_layout="npz", unit="image")
    cases = own_cases(policy, asked)
    assert [case.label for case in cases] == [None] * len(labels)


def test_patients_of_an_npz_without_a_number_are_no_patient(server: Any, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 16, 16)).astype(np.uint8)
    people = np.array([1.0, np.nan, 2.0, np.nan, 3.0, np.inf])
    np.savez(tmp_path / "set.npz", train_images=images, train_labels=np.zeros(6, int), train_patients=people)
    found = units(server.policy, server.settings, data_root=str(tmp_path / "set.npz"), data_layout="npz")
    assert len(found) == 3


def test_where_the_unit_is_the_image_a_second_line_makes_no_second_unit(
    server: Any, films: Path, tmp_path: Path
) -> None:
    table = copied(films, tmp_path / "films") / "labels.csv"
    line = table.read_text().splitlines()[1]
    table.write_text(table.read_text() + line.rpartition(",")[0] + ",p99\n")
    assert len(units(server.policy, server.settings, data_root=str(tmp_path / "films"), unit="image")) == 2 * PATIENTS


def test_a_layout_that_is_not_there_yields_noise_and_not_a_guess(server: Any, films: Path) -> None:
    assert units(server.policy, server.settings, data_root=str(films), data_layout="npz") == {}
