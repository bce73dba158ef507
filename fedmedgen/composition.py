"""Hydra's only import: the studies in `conf/` and a user's overrides become one `Settings`."""

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedmedgen.errors import SettingsError
from fedmedgen.schema import nearest
from fedmedgen.settings import Settings

CONF = Path(__file__).parent / "conf"
GROUPS = ("study", "privacy", "generator", "federation")
DATA_VARIABLE = "FEDMEDGEN_DATA"
logger = logging.getLogger(__name__)


def studies() -> dict[str, str]:
    """Name of each study and what it is for, from the first line of its file."""
    files = sorted((CONF / "study").glob("*.yaml"))
    return {file.stem: file.read_text().splitlines()[1].lstrip("# ") for file in files}


def compose(overrides: Sequence[str] = ()) -> Settings:
    """The settings of a study: defaults, the study's file, `smoke`, then the overrides, later ones first.

    **Raises** `SettingsError` naming the nearest known key, choice or type.
    """
    words = list(overrides)
    for word in words:
        _check_word(word)
    if any(word.replace(" ", "").lower() == "smoke=true" for word in words):
        words = [*_smoke_words(), *words]
    OmegaConf.register_new_resolver("private", _by_privacy, replace=True)
    GlobalHydra.instance().clear()
    ConfigStore.instance().store(name="schema", node=Settings().to_mapping())
    os.environ.setdefault(DATA_VARIABLE, "../shared/data")
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            raw = OmegaConf.to_container(hydra_compose("config", overrides=words), resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise SettingsError(f"can't compose settings from {' '.join(overrides)!r}: {error}") from error
    return resolve_paths(Settings.from_mapping(_mapping(raw)))


def resolve_paths(settings: Settings) -> Settings:
    """Paths made absolute from where the user stands, before anything is submitted elsewhere."""
    return replace(
        settings,
        out=_absolute(settings.out or f"runs/{settings.study}-{settings.seed}"),
        data=replace(settings.data, root=_absolute(settings.data.root)),
        prior=replace(settings.prior, roots=tuple(_absolute(root) for root in settings.prior.roots)),
        evaluation=replace(settings.evaluation, inception=_absolute(settings.evaluation.inception)),
        ledger=replace(settings.ledger, root=_absolute(settings.ledger.root)),
        runtime=replace(settings.runtime, kernel_cache=_absolute(settings.runtime.kernel_cache)),
    )


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().resolve()) if path else ""


def _by_privacy(private: Any, ordinary: Any, *, _root_: Any) -> Any:
    """`${private:a,b}` in a study's file: a under privacy, b without; what the noise leaves room for differs."""
    return private if _root_.privacy.mode == "patient" else ordinary


def _mapping(raw: Any) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise SettingsError(f"settings must be a mapping; got {type(raw).__name__}")
    return {str(key): value for key, value in raw.items()}


def _smoke_words() -> list[str]:
    values = yaml.safe_load((CONF / "smoke.yaml").read_text())
    return [f"{key}={yaml.safe_dump(value, default_flow_style=True).splitlines()[0]}" for key, value in values.items()]


def _check_word(word: str) -> None:
    key, equals, value = word.partition("=")
    key = key.lstrip("+~")
    if not equals:
        raise SettingsError(f"expected key=value; got {word!r}")
    if key in GROUPS:
        choices = sorted(file.stem for file in (CONF / key).glob("*.yaml"))
        if value not in choices:
            raise SettingsError(f"unknown {key} {value!r}{nearest(value, choices)}; choices: {', '.join(choices)}")
        return
    known = list(_dotted(Settings().to_mapping()))
    if key not in known:
        raise SettingsError(f"unknown setting {key!r}{nearest(key, known)}")


def _dotted(mapping: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in mapping.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _dotted(value, f"{prefix}{key}.")
