"""The promise to patients in words: what it is, what gives it, and whom it holds against."""

from collections.abc import Mapping
from typing import Any

from fedmedgen.privacy.accountant import risk_words
from fedmedgen.reporting.record import Record
from fedmedgen.reporting.tables import number
from fedmedgen.reporting.words import one


def private(record: Record) -> bool:
    """Whether the run made a privacy claim."""
    privacy = record.part("privacy")
    return record.settings.private and privacy.get("mode") != "none" and privacy.get("epsilon") is not None


def claim(record: Record) -> list[tuple[str, str]]:
    """The privacy claim as pairs of what and its words."""
    if not private(record):
        return [
            ("Privacy", "No privacy. The sites sent plain updates, which may reveal patients. There is no epsilon."),
            ("Use", "For comparison, on public data only. Never release this generator or this synthetic set."),
        ]
    privacy = record.part("privacy")
    unit, delta = str(privacy.get("unit", "patient")), float(privacy.get("delta", record.settings.privacy.delta))
    epsilon, sums = float(privacy["epsilon"]), privacy.get("secure_sum")
    what = "All that the sites tell the server together in this run" if sums else "All a site sends in this run"
    return [
        ("Promise", f"{what} is ({number(epsilon)}, {number(delta)})-differentially private."),
        ("In words", _sentence(risk_words(epsilon, delta))),
        ("Unit", _unit_words(unit)),
        ("Neighbours", f"Add/remove one {unit}: the bound compares the site's data with and without that {unit}."),
        ("Delta", f"{number(delta)}, the chance that the bound doesn't hold."),
        *_mechanism(privacy, unit),
        *(_shared(sums, unit) if sums else _alone(unit)),
        ("Not covered", "How long a site computes and how much memory it takes; settings that somebody chose by "
         "looking at the same patients; what the synthetic set is worth, measured on held-out patients without noise"
         f"{_public_people(record)}."),
    ]  # fmt: skip


def _alone(unit: str) -> list[tuple[str, str]]:
    return [
        ("Trusted", "A site trusts itself alone. The server and all other sites may work together against it."),
        ("Several sites", f"For {one(unit)} that several sites hold, their epsilons add up."),
    ]


def _shared(sums: Mapping[str, Any], unit: str) -> list[tuple[str, str]]:
    """Whom the promise of a secure sum holds against, and what is left beyond."""
    most, alone = int(sums["colluders"]), number(float(sums["epsilon_alone"]))
    bits = ", ".join(f"{size} bits ({stage})" for stage, size in sums.get("bits_per_number", {}).items())
    how = "Masked" if sums.get("masked", True) else "Without masks, since each site adds all of the noise by itself"
    others = "one of the other sites" if most == 1 else f"{most} of the other sites"
    return [
        ("Trusted", f"{sums['sites']} sites share one noise. The server and {others} may work together against a site; "
         f"if all the others do, only epsilon {alone} holds."),
        ("Vectors", f"{how}; whole numbers of {bits or 'so many bits'}, so that a sum wraps around with a chance of "
         "2^-40 at most."),
        ("Several sites", f"{one(unit).capitalize()} that several sites hold is protected less; how much less "
         "isn't reckoned here."),
    ]  # fmt: skip


def _public_people(record: Record) -> str:
    settings = record.settings
    if settings.statistics.share and settings.prior.residual and settings.prior.roots:
        return "; the people in the public radiographs, parts of which are in what is drawn"
    return ""


def _mechanism(privacy: Mapping[str, Any], unit: str) -> list[tuple[str, str]]:
    first, times = privacy.get("statistics_noise_multiplier"), int(privacy.get("statistics_rounds") or 1)
    sums, leave = ("one sum", "leaves") if times == 1 else (f"{times} sums, one after the other,", "leave")
    law, where = "Gaussian", "added at the site"
    if shared := privacy.get("secure_sum"):
        law, where = "Skellam", "of which each site adds its part, under masks"
        if not shared.get("masked", True):
            where = "which each site adds whole to its own, in the clear"
    said = (
        f"First, {sums} of each {unit}'s statistics, clipped to length 1, {leave} with {law} noise of {number(first)}"
    )
    release = [("Statistics", f"{said}, {where}.")] if first else []
    accountant = str(privacy.get("accountant") or "PLD (privacy loss distributions)")
    return [
        *release,
        *_rounds(privacy, unit),
        ("Accountant", f"{accountant}, composed over all stages of the run."),
    ]


def _rounds(privacy: Mapping[str, Any], unit: str) -> list[tuple[str, str]]:
    if privacy.get("noise_multiplier") is None:
        return []
    rate, clip, noise = (_values(privacy.get(name)) for name in ("sample_rate", "clip_norm", "noise_multiplier"))
    added = f"Gaussian noise of {noise} times that length is added at the site to their sum"
    if shared := privacy.get("secure_sum"):
        added = f"all sites together add Skellam noise of {noise} times that length to their one sum, under masks"
        if not shared.get("masked", True):
            added = f"each site adds Skellam noise of {noise} times that length to its own sum, in the clear"
    return [
        ("Sampling", f"Poisson: in each step each {unit} takes part with probability {rate}, by a coin of its own."),
        ("Noise", f"Each {unit}'s gradient is clipped to length {clip}; {added}."),
    ]  # fmt: skip


def _unit_words(unit: str) -> str:
    if unit == "patient":
        return "A patient: all images of one person at one site are protected together."
    return "An image: patient ids were missing, so a person with several images is protected less than the number says."


def _values(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{number(item)} ({name})" for name, item in value.items())
    return number(value)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
