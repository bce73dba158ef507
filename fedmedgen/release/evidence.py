"""What a run folder brings before the gate, read as it stands: nothing in it is believed yet."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fedmedgen.audit.identity import folder_hash
from fedmedgen.errors import RunError
from fedmedgen.federation.policy import SitePolicy
from fedmedgen.federation.records import NAME_OF_A_SITE
from fedmedgen.reporting.measures import of_set
from fedmedgen.settings import Settings

FACT = re.compile(r"^- ([a-z ]+): (.*)$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """A run folder's claims about itself; what isn't there is empty."""

    run: Path
    settings: Settings
    result: Mapping[str, Any]
    metrics: Mapping[
        str, Any
    ]  # of this very set: result.json's, and metrics.json's for what was not measured in the run
    audits: Mapping[str, Mapping[str, Any]]  # by site
    sheet: Mapping[str, Any]  # synthetic/datasheet.json
    card: Mapping[str, str]  # facts of the generator's model card
    policies: Mapping[str, SitePolicy]  # of simulated sites

    @property
    def sites(self) -> Mapping[str, Mapping[str, Any]]:
        """What result.json tells of each site, by name."""
        return group(self.result, "sites")

    @property
    def name(self) -> str:
        return str(self.result.get("run", ""))

    def site_folder(self, site: str) -> Path:
        return self.run / "sites" / site


def read(run: Path) -> Evidence:
    """**Raises** `RunError` if settings.yaml or result.json isn't there, or a file that is can't be read."""
    settings = Settings.from_mapping(_file(run / "settings.yaml", needed=True))
    result = _file(run / "result.json", needed=True)
    sites = sorted(group(result, "sites"))
    odd = [site for site in sites if not re.fullmatch(NAME_OF_A_SITE, site)]
    if odd:
        raise RunError(f"result.json names sites that can't be: {', '.join(map(repr, odd))}; each is one plain word")
    card = run / "generator" / "README.md"
    policies = {site: run / "sites" / site / "policy.yaml" for site in sites}
    audits = {site: _file(run / "audits" / f"{site}.json") for site in sites}
    return Evidence(
        run=run,
        settings=settings,
        result=result,
        metrics=of_set(group(result, "metrics"), _file(run / "metrics.json"), folder_hash(run / "synthetic")),
        audits={site: found for site, found in audits.items() if found},
        sheet=_file(run / "synthetic" / "datasheet.json"),
        card=dict(FACT.findall(card.read_text(encoding="utf-8"))) if card.is_file() else {},
        policies={site: SitePolicy.read(path) for site, path in policies.items() if path.is_file()},
    )


def group(mapping: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A part of a mapping that is a mapping itself, else empty."""
    found = mapping.get(name)
    return found if isinstance(found, Mapping) else {}


def _file(path: Path, *, needed: bool = False) -> Mapping[str, Any]:
    if not path.is_file():
        if needed:
            raise RunError(f"expected {path.name} in {path.parent}; it isn't there: is this a finished run?")
        return {}
    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise RunError(f"{path} can't be read: {error}") from error
    if not isinstance(found, Mapping):
        raise RunError(f"expected a mapping in {path}; got {type(found).__name__}")
    return found
