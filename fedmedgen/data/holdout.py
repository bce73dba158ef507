"""Patients that a site keeps out of every round, so that an audit has someone to compare with."""

import hashlib
import hmac

from fedmedgen.data.cases import Case, CaseSet


def split(cases: CaseSet, share: float, key: bytes) -> tuple[CaseSet, CaseSet]:
    """The cases that may take part, and those held out: about `share` of the patients, none with 0.

    **Guarantee** Whether a patient takes part depends on her own id and the key alone, never on another patient.
    """
    kept: list[Case] = []
    held: list[Case] = []
    whole = cases.unit == "patient"
    for case in cases:
        unit = f"{case.site}/{case.patient if whole else case.name}"
        (held if _place(unit, key) < share else kept).append(case)
    return cases.with_cases(kept), cases.with_cases(held)


def simulated_key(seed: int) -> bytes:
    """The key of a simulated site: whoever has the run's settings and public data finds the same patients."""
    return f"fedmedgen holdout {seed}".encode()


def _place(unit: str, key: bytes) -> float:
    """A number in [0, 1) that nobody without the key can tell from a random one."""
    digest = hmac.new(key, unit.encode("utf-8", "surrogatepass"), hashlib.sha256).digest()  # any file name will do
    return int.from_bytes(digest[:7], "big") / 2**56
