"""Studies on a deployment: in line, begun, cut off, gone on with, given up, or done unseen."""

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from fedmedgen.deployment.studies import Studies, StudyRecord, progress_of, read, write
from fedmedgen.errors import RunError


@dataclass
class Pretended:
    """Stands in for the part of Flower's command line that has to do with runs."""

    configs: list[Mapping[str, Any]] = field(default_factory=list)
    says: str = "running"
    broken: bool = False

    def run(self, app: Path, run_config: Mapping[str, Any]) -> int:
        self.configs.append(run_config)
        if self.broken:
            raise RunError("no")
        return len(self.configs)

    def status(self, run: int) -> str:
        return self.says


@pytest.fixture
def cli() -> Pretended:
    return Pretended()


@pytest.fixture
def studies(tmp_path: Path, cli: Pretended) -> Studies:
    return in_kit(tmp_path / "kit", cli)


def in_kit(kit: Path, cli: Pretended) -> Studies:
    """The studies of a server whose kit lies there."""
    flower: Any = cli
    state, runs = kit / "state", kit / "runs"
    return Studies(state / "studies", runs, kit / "app", state / "members.json", flower, 3, first_wait=0.0)


def handed_over(studies: Studies, name: str = "first", submitted: float = 1.0) -> StudyRecord:
    record = StudyRecord(
        name=name, overrides=("study=demo", "data.classes=[a, b]"), out=str(studies.runs / name),
        submitted=submitted,
    )  # fmt: skip
    Path(record.out).mkdir(parents=True)
    write(studies.folder, record)
    return record


def now(studies: Studies, name: str = "first") -> StudyRecord:
    return read(studies.folder / f"{name}.json")


def say(studies: Studies, **words: Any) -> None:
    """What a running study writes of itself."""
    (studies.runs / "first" / "progress.json").write_text(json.dumps(words))


def leave(studies: Studies, status: str) -> None:
    """The result of a run that has ended."""
    (studies.runs / "first" / "result.json").write_text(json.dumps({"status": status, "at": time.time()}))


def reach(studies: Studies, number: int) -> None:
    """A round's end, as the run folder keeps it."""
    (studies.runs / "first" / "settings.yaml").write_text("")
    words = {"stage": "generator", "round": number}
    (studies.runs / "first" / "checkpoint.json").write_text(json.dumps(words))


def test_studies_run_one_after_the_other_as_submitted(studies: Studies, cli: Pretended) -> None:
    handed_over(studies, "second", 2.0)
    handed_over(studies, "first", 1.0)
    studies.keep()
    studies.keep()
    assert (now(studies).status, now(studies, "second").status) == ("running", "waiting")
    (config,) = cli.configs
    assert config["overrides"] == "study=demo 'data.classes=[a, b]' backend=deployment"
    assert (config["resume"], config["out"]) == (False, now(studies).out)
    say(studies, stage="completed")
    studies.keep()
    studies.keep()
    assert (now(studies).status, now(studies, "second").status) == ("completed", "running")


def test_a_study_cut_off_with_its_server_goes_on_from_its_checkpoint(studies: Studies, cli: Pretended) -> None:
    handed_over(studies)
    studies.keep()
    reach(studies, 2)
    studies.interrupted()
    assert (now(studies).status, now(studies).attempts) == ("waiting", 0)
    studies.keep()
    assert cli.configs[1]["resume"] is True
    assert cli.configs[1]["overrides"] == "backend=deployment"


def test_an_earlier_attempts_words_are_not_taken_for_this_ones(studies: Studies) -> None:
    handed_over(studies)
    say(studies, stage="failed", reason="before")
    time.sleep(0.02)
    studies.keep()
    studies.keep()
    assert now(studies).status == "running"
    assert progress_of(now(studies)) == ""


def test_a_study_that_fails_is_tried_again_and_given_up_when_it_gets_no_further(studies: Studies) -> None:
    handed_over(studies)
    for attempt in range(1, 4):
        studies.keep()
        assert now(studies).status == "running"
        time.sleep(0.02)
        say(studies, stage="failed", reason="too few sites")
        studies.keep()
        assert now(studies).attempts == attempt
    assert (now(studies).status, now(studies).reason) == ("failed", "too few sites")


def test_getting_a_round_further_begins_the_count_afresh(studies: Studies) -> None:
    handed_over(studies)
    for number in range(6):
        studies.keep()
        time.sleep(0.02)
        reach(studies, number)
        say(studies, stage="failed", reason="a site went away")
        studies.keep()
        assert (now(studies).status, now(studies).attempts) == ("waiting", 0)


def test_a_run_that_flower_says_has_ended_without_a_word_is_gone_on_with(studies: Studies, cli: Pretended) -> None:
    handed_over(studies)
    studies.keep()
    cli.says = "finished:failed"
    studies.keep()
    assert (now(studies).status, now(studies).attempts) == ("waiting", 1)
    assert "finished:failed" in now(studies).reason


def test_a_submission_that_flower_refuses_counts_as_an_attempt(studies: Studies, cli: Pretended) -> None:
    handed_over(studies)
    cli.broken = True
    for _ in range(3):
        studies.keep()
    assert now(studies).status == "failed"


def test_a_study_that_fails_waits_longer_each_time_before_it_is_tried_again(studies: Studies, cli: Pretended) -> None:
    handed_over(studies)
    studies.first_wait, studies.most_attempts, cli.broken = 10.0, 9, True
    waits = []
    for _ in range(8):
        studies.keep()
        waits.append(round(now(studies).not_before - time.time(), -1))
        asked = len(cli.configs)
        studies.keep()
        assert len(cli.configs) == asked
        write(studies.folder, replace(now(studies), not_before=0.0))
    assert waits == [10, 20, 40, 80, 160, 320, 600, 600]
    write(studies.folder, replace(now(studies), not_before=time.time() + 1e6))  # a clock that was set back
    studies.keep()
    assert len(cli.configs) == 9


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "{}", '{"name": "a"}', '{"name": "a", "overrides": [], "odd": 1}']
)
def test_a_damaged_record_stops_no_other_study(studies: Studies, text: str, caplog: pytest.LogCaptureFixture) -> None:
    handed_over(studies)
    (studies.folder / "broken.json").write_text(text)
    for _ in range(3):
        studies.keep()
    assert now(studies).status == "running"
    assert studies.said() == {"first": "running", "broken": "damaged"}
    assert caplog.text.count("broken.json") == 1


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"stage": "generator"}', "7"])
@pytest.mark.parametrize("name", ["checkpoint.json", "progress.json"])
def test_a_damaged_file_of_a_run_counts_as_none(studies: Studies, cli: Pretended, name: str, text: str) -> None:
    handed_over(studies)
    reach(studies, 2)
    studies.keep()
    (Path(now(studies).out) / name).write_text(text)
    cli.says, studies.asked = "finished:failed", -1e9
    studies.keep()
    assert (now(studies).status, now(studies).attempts) == ("waiting", 1)
    studies.keep()
    assert now(studies).status == "running"


def test_a_record_is_on_the_disk_before_anything_goes_on(studies: Studies, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    plain = Path.replace
    monkeypatch.setattr(os, "fsync", lambda _: order.append("fsync"))
    monkeypatch.setattr(Path, "replace", lambda self, to: (order.append("replace"), plain(self, to))[1])
    write(studies.folder, StudyRecord(name="first", overrides=(), out="x"))
    assert order == ["fsync", "replace"]


def test_a_study_that_was_done_before_the_server_could_see_it_is_not_run_again(
    studies: Studies, cli: Pretended
) -> None:
    handed_over(studies)
    studies.keep()
    reach(studies, 2)
    leave(studies, "completed")
    studies.interrupted()
    studies.keep()
    assert (now(studies).status, now(studies).reason, len(cli.configs)) == ("completed", "", 1)


def test_a_study_that_flower_says_has_ended_is_done_if_its_result_says_so(studies: Studies, cli: Pretended) -> None:
    handed_over(studies)
    studies.keep()
    leave(studies, "completed")
    cli.says, studies.asked = "finished:failed", -1e9
    studies.keep()
    assert now(studies).status == "completed"


@pytest.mark.parametrize("later", [0.0, 3600.0])  # a copied folder, or a clock set back, makes an old file look new
def test_an_earlier_result_is_not_taken_for_that_of_a_run_that_was_extended(studies: Studies, later: float) -> None:
    record = handed_over(studies)
    leave(studies, "completed")
    result = Path(record.out) / "result.json"
    studies.keep()
    os.utime(result, (time.time() + later, time.time() + later))
    studies.interrupted()
    assert now(studies).status == "waiting"
    studies.keep()
    leave(studies, "failed")
    studies.interrupted()
    assert now(studies).status == "waiting"
    studies.keep()
    leave(studies, "completed")
    studies.interrupted()
    assert now(studies).status == "completed"


def test_a_record_from_before_that_knows_of_no_earlier_result_is_run_again(studies: Studies) -> None:
    record = handed_over(studies)
    write(studies.folder, replace(record, status="running"))
    leave(studies, "completed")
    studies.interrupted()
    assert now(studies).status == "waiting"


def test_a_server_that_was_moved_goes_on_with_its_studies_where_it_is_now(
    studies: Studies, cli: Pretended, tmp_path: Path
) -> None:
    handed_over(studies)
    studies.keep()
    reach(studies, 2)
    (tmp_path / "kit").rename(tmp_path / "elsewhere")
    moved = in_kit(tmp_path / "elsewhere", cli)
    moved.interrupted()
    moved.keep()
    assert cli.configs[1]["out"] == str(tmp_path / "elsewhere" / "runs" / "first") == now(moved).out
    assert cli.configs[1]["resume"] is True
    assert not (tmp_path / "kit").exists()
    assert str(tmp_path) not in (moved.folder / "first.json").read_text()


def test_a_record_from_before_that_names_a_folder_is_still_read(studies: Studies, cli: Pretended) -> None:
    handed_over(studies)
    file = studies.folder / "first.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "out": "/where/it/was/first"}))
    studies.keep()
    assert cli.configs[0]["out"] == str(studies.runs / "first")
