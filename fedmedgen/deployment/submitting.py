"""A study's way to the server: its settings checked, its record where `serve` looks."""

import time
from pathlib import Path

from fedmedgen.composition import compose
from fedmedgen.deployment.kits import digest_of
from fedmedgen.deployment.project import ServerConfig, StudyFile
from fedmedgen.deployment.serving import studies_folder
from fedmedgen.deployment.studies import ENDED, StudyRecord, read, write
from fedmedgen.errors import RunError, SettingsError


def submit(path: Path) -> tuple[StudyRecord, Path]:
    """Hand a study over; its record, and the folder that its record lies in.

    **Raises** `SettingsError` for settings that no deployment can carry out, `RunError` for a name that is taken.
    """
    study = StudyFile.read(path)
    server = ServerConfig.read(Path(study.server))
    out, folder = Path(server.runs) / study.name, studies_folder(server)
    words = (*study.overrides, "backend=deployment")
    settings = compose([*words, f'out="{out}"'])
    if not settings.data.classes and settings.generator.family == "moments":
        raise SettingsError("data.classes must name the classes: the server sees no site's labels")
    if not settings.private:
        raise SettingsError("privacy=none is for simulations on public data: no real site takes part in it")
    known = folder / f"{study.name}.json"
    if known.is_file() and read(known).status not in ENDED:
        raise RunError(f"the study {study.name} is {read(known).status} already: wait for it, or give yours a new name")
    if (out / "result.json").exists() or (out / "settings.yaml").exists():
        raise RunError(f"{out} holds a study's results already: give yours a new name")
    bundle = digest_of(Path(server.app))
    record = StudyRecord(name=study.name, overrides=study.overrides, out=str(out), submitted=time.time(), bundle=bundle)
    write(folder, record)
    return record, folder
