"""The studies of a server: what was submitted, how it goes, and how one that was cut off goes on."""

import json
import logging
import shlex
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from fedmedgen.deployment.flower_cli import FlowerCli
from fedmedgen.errors import RunError

logger = logging.getLogger(__name__)

ASK_SECONDS = 20.0  # between questions to Flower, each a process
Status = Literal["waiting", "running", "completed", "failed"]
ENDED = ("completed", "failed")


@dataclass(frozen=True, kw_only=True)
class StudyRecord:
    """One study's line of life, on disk whenever it changes."""

    name: str
    overrides: tuple[str, ...]
    out: str
    status: Status = "waiting"
    run: int = 0  # Flower's number of the last attempt
    since: float = 0.0  # when that began
    attempts: int = 0  # that got no round further
    reached: str = ""  # the last checkpoint when it began
    reason: str = ""
    submitted: float = 0.0
    bundle: str = ""


@dataclass
class Studies:
    """Carries the waiting studies out, one after the other in the order they were submitted."""

    folder: Path
    app: Path
    members: Path
    cli: FlowerCli
    most_attempts: int
    asked: float = 0.0

    def all(self) -> list[StudyRecord]:
        found = [read(path) for path in self.folder.glob("*.json")]
        return sorted(found, key=lambda record: (record.submitted, record.name))

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
        elif waiting is not None:
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
        begun = replace(record, since=time.time(), reached=_reached(out))
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
            write(self.folder, replace(record, status="completed", reason=""))
            logger.warning("study %s is done: %s", record.name, record.out)
        elif said.get("stage") == "failed":
            self._again(record, str(said.get("reason", "")), counts=True)
        elif time.monotonic() - self.asked > ASK_SECONDS:
            self.asked = time.monotonic()
            status = self.cli.status(record.run)
            if status.startswith("finished") and _progress(Path(record.out), since=record.since) == said:
                self._again(record, f"Flower says {status}", counts=True)

    def _again(self, record: StudyRecord, reason: str, *, counts: bool) -> None:
        """Put a study that was cut off back in line, unless it has been tried often enough without getting further."""
        further = _reached(Path(record.out)) != record.reached
        attempts = 0 if further else record.attempts + counts
        status: Status = "failed" if attempts >= self.most_attempts else "waiting"
        write(self.folder, replace(record, status=status, attempts=attempts, reason=reason))
        logger.warning("study %s was cut off (%s): %s", record.name, reason[:300], status)


def read(path: Path) -> StudyRecord:
    known: dict[str, Any] = json.loads(path.read_text())
    return StudyRecord(**{**known, "overrides": tuple(known["overrides"])})


def write(folder: Path, record: StudyRecord) -> None:
    """Replace a study's record as a whole."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{record.name}.json"
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(asdict(record), indent=1))
    draft.replace(path)


def _reached(out: Path) -> str:
    path = out / "checkpoint.json"
    if not path.is_file():
        return ""
    known = json.loads(path.read_text())
    return f"{known['stage']} {known['round']}"


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
    return dict(json.loads(path.read_text()))
