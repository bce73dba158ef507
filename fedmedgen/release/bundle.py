"""A run through the gate: the release written whole and signed, or nothing, and why."""

import datetime
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedmedgen.audit.identity import folder_hash
from fedmedgen.errors import ReleaseError
from fedmedgen.release import cards, certificate, page
from fedmedgen.release.evidence import Evidence, read
from fedmedgen.release.gate import Judgement, judge
from fedmedgen.release.signing import ProjectKey, project_key
from fedmedgen.reporting import record

SET, GENERATOR = "set", "generator"


@dataclass(frozen=True)
class Released:
    """What the gate said; the folder and the key where it let the set through."""

    judgement: Judgement
    folder: Path | None
    key: ProjectKey | None


def release(run: Path, out: Path, *, key: Path | None = None, with_generator: bool = False) -> Released:
    """Judge RUN; if nothing speaks against it write the release to `out`, in one step. RUN/release.json says which.

    **Raises** `RunError` if there is no finished run; `ReleaseError` if `out` is there already, or the key isn't.
    """
    refuse_existing(run, out)
    evidence = read(run)
    judgement = judge(evidence)
    if not judgement.granted:
        _note(run, judgement, None, None)
        return Released(judgement, None, None)
    own = project_key(key)
    out.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        _write(staged, evidence, judgement, own, with_generator=with_generator)
        staged.chmod(0o755)
        refuse_existing(run, out)
        staged.rename(out)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    _note(run, judgement, out, own)
    return Released(judgement, out, own)


def refuse_existing(run: Path, out: Path) -> None:
    """A release is never written over another, nor into the run that it is of."""
    if os.path.lexists(out):
        raise ReleaseError(f"{out} is there already: a release is never written over; name another folder")
    if out.resolve().is_relative_to(run.resolve()):
        raise ReleaseError(f"{out} lies in the run folder: name a folder beside it")


def _write(folder: Path, evidence: Evidence, judgement: Judgement, key: ProjectKey, *, with_generator: bool) -> None:
    content = certificate.draft(evidence, judgement, key)
    parts = {"synthetic": SET} | ({"generator": GENERATOR} if with_generator else {})
    for part, name in parts.items():
        shutil.copytree(evidence.run / part, folder / name)
        if folder_hash(folder / name) != content["hashes"][part]:
            raise ReleaseError(f"RUN/{part} changed while it was released: look at who writes there, and release anew")
    seen = record.read(evidence.run)
    (folder / "README.md").write_text(cards.readme(content, with_generator=with_generator), encoding="utf-8")
    (folder / "datasheet.md").write_text(cards.datasheet(content), encoding="utf-8")
    (folder / certificate.PAGE).write_text(page.draw(content, seen), encoding="utf-8")
    content["files"] = certificate.files_of(folder)
    (folder / certificate.NAME).write_text(certificate.written(content), encoding="utf-8")
    signature = key.sign(certificate.signed_bytes(content))
    (folder / certificate.SIGNATURE).write_text(signature + "\n", encoding="utf-8")


def _note(run: Path, judgement: Judgement, folder: Path | None, key: ProjectKey | None) -> None:
    """What the gate said, for the run's report."""
    note: dict[str, Any] = {
        "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "granted": judgement.granted,
        "reasons": judgement.reasons,
        "certificate": folder.name if folder else None,
        "key": key.fingerprint if key else None,
    }
    (run / "release.json").write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")
