"""Every key that crosses the wire, each with its privacy status; what isn't listed can't be sent.

A message holds at most one record of arrays, one of metrics and one of text under the three record names.
"""

from dataclasses import dataclass
from enum import Enum

ARRAYS = "arrays"
METRICS = "metrics"
CONFIG = "config"

SITE = "site"
STATUS = "status"
UNIT = "unit"
WEIGHT = "num-examples"
PATIENTS = "patients-declared"
LABELLED = "labelled-declared"
LOSS = "loss"

RUN = "run"
STAGE = "stage"
SERVER_ROUND = "server-round"
SETTINGS = "settings"
NOISE_MULTIPLIER = "noise-multiplier"
PROXIMAL_MU = "proximal-mu"

DONE = "done"
IDLE = "idle"
REFUSED_POLICY = "refused-policy"
REFUSED_BUDGET = "refused-budget"
REFUSED_LEDGER = "refused-ledger"
REFUSED_SELFCHECK = "refused-selfcheck"
REFUSED_DATA = "refused-data"
FAULT = "fault"
STATUSES = (
    DONE, IDLE, REFUSED_POLICY, REFUSED_BUDGET, REFUSED_LEDGER, REFUSED_SELFCHECK, REFUSED_DATA, FAULT,
)  # fmt: skip


class Privacy(Enum):
    """Why a value may leave a site."""

    PUBLIC = "fixed without looking at the data, by a person or the study"
    RELEASE = "an output of the mechanism in the ledger"
    CODE = "a word from a fixed list"
    SIMULATION = "computed from patients: leaves only where the site's own policy says the data are public"


@dataclass(frozen=True)
class Listed:
    """One key that may leave a site."""

    record: str
    key: str
    kind: type
    privacy: Privacy


OUTGOING = (
    Listed(CONFIG, SITE, str, Privacy.PUBLIC),
    Listed(CONFIG, STATUS, str, Privacy.CODE),
    Listed(CONFIG, UNIT, str, Privacy.PUBLIC),
    Listed(METRICS, WEIGHT, float, Privacy.PUBLIC),
    Listed(METRICS, PATIENTS, float, Privacy.PUBLIC),
    Listed(METRICS, LABELLED, float, Privacy.PUBLIC),
    Listed(METRICS, LOSS, float, Privacy.SIMULATION),
)
