"""A study's way to the server: its settings checked, its record where `serve` looks."""

import time
from dataclasses import replace
from pathlib import Path

import yaml

from fedmedgen.composition import compose
from fedmedgen.deployment.kits import digest_of
from fedmedgen.deployment.project import ServerConfig, StudyFile
from fedmedgen.deployment.serving import studies_folder
from fedmedgen.deployment.studies import ENDED, StudyRecord, read, write
from fedmedgen.errors import FedmedgenError, RunError, SettingsError
from fedmedgen.federation.described import require_feasible
from fedmedgen.settings import Settings


def submit(path: Path) -> tuple[StudyRecord, ServerConfig]:
    """Hand a study over, or one that failed a second time: it goes on from its checkpoint; its record and its server.

    **Raises** `SettingsError` for settings that no deployment can carry out, `RunError` for a name that is taken.
    """
    study = StudyFile.read(path)
    server = ServerConfig.read(Path(study.server))
    out, folder = Path(server.runs) / study.name, studies_folder(server)
    words = (*study.overrides, "backend=deployment")
    settings = compose([*words, f'out="{out}"'])
    require_feasible(settings)
    if not settings.data.classes and settings.generator.family == "moments":
        raise SettingsError("data.classes must name the classes: the server sees no site's labels")
    if not settings.private:
        raise SettingsError("privacy=none is for simulations on public data: no real site takes part in it")
    fresh = StudyRecord(name=study.name, overrides=study.overrides, out=str(out), submitted=time.time())
    record = _taken_up(folder / f"{study.name}.json", fresh, settings)
    record = replace(record, bundle=digest_of(Path(server.app)))
    write(folder, record)
    return record, server


def _taken_up(path: Path, fresh: StudyRecord, settings: Settings) -> StudyRecord:
    """The record to hand over under this name.

    **Raises** `RunError` where another study has the name, or this one has it and hasn't failed.
    """
    try:
        known = read(path, Path(fresh.out).parent) if path.is_file() else None
    except RunError:  # damaged: what it was stands in its run folder too
        return fresh if _begun(Path(fresh.out), settings) else _unused(fresh)
    if known is None or known.status == "completed":
        return _unused(fresh)
    if known.status not in ENDED:
        raise RunError(f"the study {known.name} is {known.status} already: wait for it, or give yours a new name")
    if known.overrides != fresh.overrides:
        return _unused(fresh)
    return replace(known, status="waiting", attempts=0, reason="", not_before=0.0, submitted=fresh.submitted)


def _unused(fresh: StudyRecord) -> StudyRecord:
    if any((Path(fresh.out) / name).exists() for name in ("result.json", "settings.yaml")):
        raise RunError(
            f"{fresh.out} holds a study's results already: give yours a new name; one that failed goes on only if it "
            "is handed over with the very words it had"
        )
    return fresh


def _begun(out: Path, settings: Settings) -> bool:
    """Whether the run folder is of a study with these very settings, wherever it was when that began."""
    try:
        known = Settings.from_mapping(yaml.safe_load((out / "settings.yaml").read_text()))
        return replace(known, out=settings.out) == settings
    except (OSError, ValueError, TypeError, yaml.YAMLError, FedmedgenError):
        return False
