"""Every key that crosses the wire, each with its privacy status; what isn't listed can't be sent, nor asked.

A message holds at most one record of arrays, one of metrics and one of text under the three record names. The names of
arrays aren't listed here: they are those of the trainable parameters of the network that the request describes, or, of
the statistics, those of the basis or features that are asked about and the one vector that answers. A request alone may
hold the network's frozen parameters too, under `PUBLIC_PREFIX`; once a site has them, their hash stands for them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

ARRAYS = "arrays"
METRICS = "metrics"
CONFIG = "config"

SITE = "site"
NAME_OF_A_SITE = r"\w[\w .-]{0,63}"  # letters, digits, spaces, dots, dashes, underscores
STATUS = "status"
UNIT = "unit"
WEIGHT = "num-examples"
PATIENTS = "patients-declared"
LABELLED = "labelled-declared"
LOSS = "loss"
SIMULATION = "simulation"

RUN = "run"
STAGE = "stage"
SERVER_ROUND = "server-round"
SETTINGS = "settings"
NOISE_MULTIPLIER = "noise-multiplier"
STATISTICS_NOISE = "statistics-noise"
PROXIMAL_MU = "proximal-mu"
PUBLIC = "public-arrays"
PUBLIC_PREFIX = "public."
SESSION = "session"
MASKING = "masking"
MASKED = "masked"

DONE = "done"
IDLE = "idle"
REFUSED_POLICY = "refused-policy"
REFUSED_BUDGET = "refused-budget"
REFUSED_LEDGER = "refused-ledger"
REFUSED_SELFCHECK = "refused-selfcheck"
REFUSED_DATA = "refused-data"
LACKS_ARRAYS = "lacks-arrays"
FAULT = "fault"
STATUSES = (
    DONE, IDLE, REFUSED_POLICY, REFUSED_BUDGET, REFUSED_LEDGER, REFUSED_SELFCHECK, REFUSED_DATA, LACKS_ARRAYS, FAULT,
)  # fmt: skip


class Privacy(Enum):
    """Why a value may leave a site."""

    ASKED = "a server's words to a site: no patient is in them, and the site's policy bounds them"
    PUBLIC = "fixed without looking at the data, by a person: leaves as it stands in the site's policy"
    MASKING = "keys, sealed shares and signatures of a secure sum: random numbers, drawn whatever the data hold"
    RELEASE = "an output of the mechanism in the ledger"
    CODE = "a word from a fixed list"
    SIMULATION = "computed from patients: leaves only where the site's own policy says the data are public"


@dataclass(frozen=True)
class Listed:
    """One key that may leave a site, or reach it."""

    record: str
    key: str
    kind: type
    privacy: Privacy


OUTGOING = (
    Listed(CONFIG, SITE, str, Privacy.PUBLIC),
    Listed(CONFIG, STATUS, str, Privacy.CODE),
    Listed(CONFIG, UNIT, str, Privacy.PUBLIC),
    Listed(CONFIG, SIMULATION, str, Privacy.PUBLIC),
    Listed(CONFIG, MASKING, str, Privacy.MASKING),
    Listed(METRICS, WEIGHT, float, Privacy.PUBLIC),
    Listed(METRICS, PATIENTS, float, Privacy.PUBLIC),
    Listed(METRICS, LABELLED, float, Privacy.PUBLIC),
    Listed(METRICS, LOSS, float, Privacy.SIMULATION),
)

QUERY = "query"
TRAIN = "train"
ADVERTISE, SHARE, MASK, AGREE, UNMASK = PHASES = ("advertise", "share", "mask", "agree", "unmask")  # of a secure sum
ROUND = (
    Listed(CONFIG, RUN, str, Privacy.ASKED),
    Listed(CONFIG, STAGE, str, Privacy.ASKED),
    Listed(CONFIG, SERVER_ROUND, int, Privacy.ASKED),
    Listed(CONFIG, SETTINGS, str, Privacy.ASKED),
    Listed(CONFIG, NOISE_MULTIPLIER, float, Privacy.ASKED),
    Listed(CONFIG, STATISTICS_NOISE, float, Privacy.ASKED),
)
SUM = (Listed(CONFIG, SESSION, str, Privacy.ASKED), Listed(CONFIG, MASKING, str, Privacy.ASKED))


def of_phase(phase: str) -> str:
    """The type of a message of a secure sum."""
    return f"{TRAIN}.{phase}"


WITHOUT_SETTINGS = tuple(
    map(of_phase, (SHARE, AGREE, UNMASK))
)  # only a simulated node needs them, to know its partition
INCOMING: Mapping[str, tuple[Listed, ...]] = {
    QUERY: (Listed(CONFIG, SETTINGS, str, Privacy.ASKED),),
    TRAIN: (*ROUND, Listed(CONFIG, PROXIMAL_MU, float, Privacy.ASKED), Listed(CONFIG, PUBLIC, str, Privacy.ASKED)),
    of_phase(ADVERTISE): (*ROUND, *SUM),
    of_phase(MASK): (*ROUND, *SUM),
    **dict.fromkeys(WITHOUT_SETTINGS, (*SUM, Listed(CONFIG, SETTINGS, str, Privacy.ASKED))),
}
OPTIONAL = (PROXIMAL_MU, PUBLIC)  # keys that a request may lack
WITH_ARRAYS = (TRAIN, of_phase(MASK))  # the types of messages that may hold arrays
