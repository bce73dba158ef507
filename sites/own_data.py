"""A real site's cases: what its own policy names, and nothing that a request could steer by.

Whether a patient's cases are used must not depend on another patient, nor on what the server asks.
"""

import logging
from dataclasses import replace
from functools import lru_cache

from fedmedgen.data import sources
from fedmedgen.data.cases import CaseSet
from fedmedgen.federation.policy import SitePolicy
from fedmedgen.settings import DataSettings, Settings

logger = logging.getLogger(__name__)


def data_of(policy: SitePolicy, asked: DataSettings) -> DataSettings:
    """How the site reads its data: classes, masks, size and fit are the study's, all else is the site's own."""
    columns = policy.data_columns
    if not asked.classes:  # a class list found in the data would tell about them
        columns = replace(columns, label="", label_name="")
    return DataSettings(
        root=policy.data_root,
        columns=columns,
        classes=asked.classes,
        mask_classes=asked.mask_classes,
        size=asked.size,
        fit=asked.fit,
        test_share=0.0,
        min_patients=1,
    )


def own_cases(policy: SitePolicy, settings: Settings) -> CaseSet:
    """The site's training cases; none, said in the site's own log alone, where its data can't be read."""
    try:
        cases = _read(data_of(policy, settings.data))
    except Exception:
        logger.exception("site %s: its data can't be read; the reply is noise", policy.site)
        return CaseSet((), settings.data.classes, settings.data.mask_classes)
    kept = [
        replace(case, site=policy.site, patient=case.patient if policy.unit == "patient" else None)
        for case in cases
        if case.patient or policy.unit == "image"
    ]
    if len(kept) < len(cases):
        logger.warning("site %s: %d cases name no patient and are left out", policy.site, len(cases) - len(kept))
    found = cases.with_cases(kept)
    if len(found.by_patient()) > policy.patients_declared:
        logger.warning("site %s holds more patients than its policy declares: raise the declared figure", policy.site)
    return found


@lru_cache(maxsize=1)
def _read(data: DataSettings) -> CaseSet:
    return sources.load(data, seed=0, mixed=True).of_split("train")
