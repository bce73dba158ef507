"""The studies of a server: what was submitted, how it goes, and how one that was cut off goes on."""

import hashlib
import json
import logging
import os
import shlex
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from fedmedgen.deployment.flower_cli import FlowerCli
from fedmedgen.errors import RunError

logger = logging.getLogger(__name__)

ASK_SECONDS = 20.0  # between questions to Flower, each a process
LONGEST_WAIT = 600.0  # before a study that failed is tried again
Status = Literal["waiting", "running", "completed", "failed"]
ENDED = ("completed", "failed")


@dataclass(frozen=True, kw_only=True)
class StudyRecord:
    """One study's line of life, on disk whenever it changes."""

    name: str
    overrides: tuple[str, ...]
    out: str  # by the server's settings and the name; not written down, for its folder may be moved
    status: Status = "waiting"
    run: int = 0  # Flower's number of the last attempt
    since: float = 0.0  # when that began
    attempts: int = 0  # that got no round further
    reached: str = ""  # the last checkpoint when it began
    result_before: str | None = None  # the SHA-256 of the result that lay there then
    not_before: float = 0.0  # when it may be tried again
    reason: str = ""
    submitted: float = 0.0
    bundle: str = ""


@dataclass
class Studies:
    """Carries the waiting studies out, one after the other in the order they were submitted."""

    folder: Path
    runs: Path
    app: Path
    members: Path
    cli: FlowerCli
    most_attempts: int
    first_wait: float = 10.0  # seconds before a study that failed is tried again; doubled each time
    asked: float = 0.0
    damaged: tuple[str, ...] = ()  # names of studies whose records can't be read

    def all(self) -> list[StudyRecord]:
        """Every record that can be read; a damaged one stops no other study."""
        found, damaged = [], []
        for path in sorted(self.folder.glob("*.json")):
            try:
                found.append(read(path, self.runs))
            except RunError as error:
                damaged.append(path.stem)
                if path.stem not in self.damaged:
                    logger.error("%s", error)
        self.damaged = tuple(damaged)
        return sorted(found, key=lambda record: (record.submitted, record.name))

    def said(self) -> dict[str, str]:
        """Each study's status, in a word."""
        return {record.name: record.status for record in self.all()} | dict.fromkeys(self.damaged, "damaged")

    def interrupted(self) -> None:
        """The SuperLink has started afresh: what ran on it has ended there, and goes on from its checkpoint."""
        for record in self.all():
            if record.status == "running":
                self._again(record, "the SuperLink was started again", counts=False)

    def keep(self) -> None:
        """See to the running study, or begin the first that waits."""
        records = self.all()
        running = next((record for record in records if record.status == "running"), None)
        waiting = next((record for record in records if record.status == "waiting"), None)
        if running is not None:
            self._see_to(running)
        elif waiting is not None and not 0 < waiting.not_before - time.time() <= LONGEST_WAIT:  # a clock set back
            self._begin(waiting)

    def _begin(self, record: StudyRecord) -> None:
        out = Path(record.out)
        resume = (out / "settings.yaml").is_file()
        config = {
            "overrides": "backend=deployment" if resume else shlex.join([*record.overrides, "backend=deployment"]),
            "out": record.out,
            "resume": resume,
            "members": str(self.members),
        }
        before = _digest(out / "result.json")
        begun = replace(record, since=time.time(), reached=_reached(out), result_before=before)
        try:
            run = self.cli.run(self.app, config)
        except RunError as error:
            logger.error("study %s: %s", record.name, error)
            self._again(begun, str(error), counts=True)
            return
        write(self.folder, replace(begun, status="running", run=run))
        logger.warning("study %s %s as run %d", record.name, "goes on" if resume else "begins", run)

    def _see_to(self, record: StudyRecord) -> None:
        said = _progress(Path(record.out), since=record.since)
        if said.get("stage") == "completed":
            self._done(record)
        elif said.get("stage") == "failed":
            self._again(record, str(said.get("reason", "")), counts=True)
        elif time.monotonic() - self.asked > ASK_SECONDS:
            self.asked = time.monotonic()
            status = self.cli.status(record.run)
            if status.startswith("finished") and _progress(Path(record.out), since=record.since) == said:
                self._again(record, f"Flower says {status}", counts=True)

    def _done(self, record: StudyRecord) -> None:
        write(self.folder, replace(record, status="completed", reason=""))
        logger.warning("study %s is done: %s", record.name, record.out)

    def _again(self, record: StudyRecord, reason: str, *, counts: bool) -> None:
        """Put a study that was cut off back in line, unless it was done by then, or got no further often enough."""
        if _has_completed(record):
            self._done(record)
            return
        further = _reached(Path(record.out)) not in ("", record.reached)
        attempts = 0 if further else record.attempts + counts
        status: Status = "failed" if attempts >= self.most_attempts else "waiting"
        wait = min(self.first_wait * 2 ** (attempts - 1), LONGEST_WAIT) if counts and attempts else 0.0
        again = replace(record, status=status, attempts=attempts, reason=reason, not_before=time.time() + wait)
        write(self.folder, again)
        logger.warning("study %s was cut off (%s): %s", record.name, reason[:300], status)


def read(path: Path, runs: Path | None = None) -> StudyRecord:
    """A study's record; its results are in `runs`, by default where a kit has them.

    **Raises** `RunError` where the record is damaged.
    """
    runs = runs or path.parent.parent.parent / "runs"
    try:
        known: dict[str, Any] = json.loads(path.read_text())
        words = {"overrides": tuple(known["overrides"]), "out": str(runs / known["name"])}
        return StudyRecord(**{**known, **words})
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise RunError(
            f"a study's record at {path} can't be read ({type(error).__name__}: {error}): hand the study over again"
        ) from error


def write(folder: Path, record: StudyRecord) -> None:
    """Replace a study's record as a whole; it is on the disk before this returns."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{record.name}.json"
    draft = path.with_suffix(".draft")
    words = {key: value for key, value in asdict(record).items() if key != "out"}
    with draft.open("w") as file:
        file.write(json.dumps(words, indent=1))
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def _reached(out: Path) -> str:
    """The last checkpoint in words; nothing where there is none, or one that can't be read."""
    known = _object_in(out / "checkpoint.json")
    return f"{known['stage']} {known['round']}" if {"stage", "round"} <= known.keys() else ""


def _has_completed(record: StudyRecord) -> bool:
    """Whether the last attempt's own result, and not one that lay there before it, says that it was completed."""
    path = Path(record.out) / "result.json"
    return record.result_before not in (None, _digest(path)) and _object_in(path).get("status") == "completed"


def _digest(path: Path) -> str:
    """The SHA-256 of a file; nothing where there is none."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


def progress_of(record: StudyRecord) -> str:
    """Where the running attempt stands, in words."""
    said = _progress(Path(record.out), since=record.since)
    rounds = f" {said['round']} of {said['rounds']}" if said.get("rounds") else ""
    return f", {said['stage']}{rounds}" if said.get("stage") else ""


def _progress(out: Path, *, since: float) -> dict[str, Any]:
    """What the running attempt says of itself; nothing where what lies there is an earlier one's."""
    path = out / "progress.json"
    if not path.is_file() or path.stat().st_mtime < since:
        return {}
    return _object_in(path)


def _object_in(path: Path) -> dict[str, Any]:
    """A JSON file's object; an empty one where there is none, whatever lies there instead."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
