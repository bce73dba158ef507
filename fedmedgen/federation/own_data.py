"""A real site's cases: what its own policy names, and nothing that a request could steer by.

Whether a patient's cases are used must not depend on another patient, nor on what the server asks.
"""

import logging
from dataclasses import replace
from functools import lru_cache

from fedmedgen.data import sources
from fedmedgen.data.cases import Case, CaseSet
from fedmedgen.federation.policy import SitePolicy
from fedmedgen.settings import DataSettings, Settings

logger = logging.getLogger(__name__)


def data_of(policy: SitePolicy, asked: DataSettings) -> DataSettings:
    """How the site reads its data: classes, masks, size and fit are the study's, all else is the site's own."""
    return DataSettings(
        root=policy.data_root,
        columns=policy.data_columns,
        classes=asked.classes,
        mask_classes=asked.mask_classes,
        size=asked.size,
        fit=asked.fit,
    )


def own_cases(policy: SitePolicy, settings: Settings) -> CaseSet:
    """The site's training cases; none, said in the site's own log alone, where its data can't be read at all."""
    try:
        cases = _read(data_of(policy, settings.data), policy.data_layout, policy.mask_suffix)
    except Exception:
        logger.exception("site %s: its data can't be read; the reply is noise", policy.site)
        return CaseSet((), settings.data.classes, settings.data.mask_classes)
    for bad in cases.rejected:
        logger.warning("site %s: set aside %s: %s", policy.site, bad.file, bad.reason)
    found = cases.with_cases(_by_image(cases, policy.site) if policy.unit == "image" else _by_id(cases, policy.site))
    if len(found.by_patient()) > policy.patients_declared:
        logger.warning("site %s holds more patients than its policy declares: raise the declared figure", policy.site)
    return found


def _by_id(cases: CaseSet, site: str) -> list[Case]:
    """Cases that name their patient, who is one unit in whatever folder they lie."""
    kept = [replace(case, site=site) for case in cases if case.patient]
    if len(kept) < len(cases):
        logger.warning("site %s: %d cases name no patient and are left out", site, len(cases) - len(kept))
    return kept


def _by_image(cases: CaseSet, site: str) -> list[Case]:
    """Each file once, and each its own unit, whatever patients are named."""
    once = {(case.site, case.name): replace(case, site=site, patient=None) for case in reversed(cases.cases)}
    return list(reversed(once.values()))


@lru_cache(maxsize=1)
def _read(data: DataSettings, layout: str, mask_suffix: str) -> CaseSet:
    return sources.read_own(data, layout=layout, mask_suffix=mask_suffix)
