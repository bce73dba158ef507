"""Run folders, as commands find them."""

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
        return Settings.from_mapping(yaml.safe_load(path.read_text()))
    except yaml.YAMLError as error:
        raise RunError(f"settings.yaml of {folder} isn't YAML ({error}): restore it from the run") from error
