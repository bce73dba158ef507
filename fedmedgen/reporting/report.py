"""The page people read: one self-contained file drawn from a run folder alone."""

import logging
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from fedmedgen import __version__
from fedmedgen.reporting import audits, claims, sections, tables, words, worth
from fedmedgen.reporting.record import Record, read
from fedmedgen.reporting.style import CSS
from fedmedgen.reporting.template import TEMPLATE

log = logging.getLogger(__name__)

NOT_PUBLIC = "A simulation on data that is not public: what would tell about single sites is left out."


def write_report(run: Path) -> Path:
    """Draw RUN/report.html and give its path.

    **Raises** `RunError` if the folder lacks settings.yaml or result.json.
    """
    record = read(run)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(TEMPLATE).render(content(record))
    target = run / "report.html"
    target.write_text(page, encoding="utf-8")
    log.info("report written to %s", target)
    return target


def content(record: Record) -> dict[str, Any]:
    """Everything the template prints."""
    status = str(record.result.get("status", "unknown"))
    return {
        "css": Markup(CSS),
        "version": __version__,
        "study": record.settings.study,
        "status": status,
        "finished": status in words.FINISHED,
        "note": NOT_PUBLIC if record.result.get("simulation") and not record.shows_sites else "",
        "verdict": words.verdict(record),
        "meanings": words.MEANINGS,
        "claim": claims.claim(record),
        "tiles": sections.tiles(record),
        "sites": sections.sites(record),
        "classification": worth.classification(record),
        "segmentation": worth.segmentation(record),
        "mask_shapes": worth.mask_shapes(record),
        "fidelity": worth.fidelity(record),
        "audits": audits.audits(record),
        "release": audits.release(record),
        "training": sections.training(record),
        "replies": tables.rejected_replies(record.rounds),
        "files": sections.files(record),
        "data": sections.data(record),
        "cost": sections.cost(record),
        "settings": yaml.safe_dump(_without_folders(record), sort_keys=False),
    } | sections.samples(record)


def _without_folders(record: Record) -> dict[str, Any]:
    """The settings with the last word of each path only: a page travels, and folders tell about the machine."""
    settings = record.settings.to_mapping()
    for group in ("data", "ledger"):
        settings[group]["root"] = Path(settings[group]["root"]).name
    return settings
