"""Run folders, as commands find them; folders that commands write to."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedmedgen.settings import Settings


def settings_of(folder: Path) -> "Settings":
    """**Raises** `RunError` if the folder has no settings that can be read."""
    import yaml

    from fedmedgen.errors import RunError
    from fedmedgen.settings import Settings

    path = folder / "settings.yaml"
    if not path.is_file():
        raise RunError(f"no settings.yaml in {folder}: expected the folder of a finished run; name that")
    try:
        return Settings.from_mapping(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RunError(f"settings.yaml of {folder} isn't YAML ({error}): restore it from the run") from error


def require_new(out: Path) -> None:
    """Before anything is computed: `out` is an empty folder, or one that can be made.

    **Raises** `RunError` if not.
    """
    from fedmedgen.errors import RunError

    if out.exists() and any(out.iterdir() if out.is_dir() else [1]):
        raise RunError(f"--out must name a new or empty folder; {out} is in use: name another")
    home = next(place for place in (out, *out.absolute().parents) if place.exists())
    if not (home.is_dir() and os.access(home, os.W_OK | os.X_OK)):
        why = "may not be written to" if home.is_dir() else "is no folder"
        raise RunError(f"--out must name a folder that can be made; for {out} it can't, as {home} {why}: name another")
