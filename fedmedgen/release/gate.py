"""The gate: every question is asked, and a set leaves only if none of them has a reason against it."""

import csv
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fedmedgen.errors import FedmedgenError
from fedmedgen.release import audited, spent, worth
from fedmedgen.release.evidence import Evidence, group

FINISHED = "completed"
BELONGS = {"images": {".png"}, "masks": {".png"}, "labels.csv": set(), "datasheet.json": set()}

OF_A_GENERATOR = {".json", ".safetensors", ".py", ".md"}


@dataclass(frozen=True)
class Check:
    """One question, and all reasons against a release that were found in asking it."""

    question: str
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Judgement:
    """Every check; granted if none has a reason."""

    checks: tuple[Check, ...]

    @property
    def reasons(self) -> list[str]:
        return [reason for check in self.checks for reason in check.reasons]

    @property
    def granted(self) -> bool:
        return not self.reasons


def judge(evidence: Evidence) -> Judgement:
    """Ask everything; what can't be asked counts against the release."""
    return Judgement(tuple(Check(question, tuple(_asked(ask, evidence))) for question, ask in QUESTIONS.items()))


def _asked(ask: Callable[[Evidence], Iterable[str]], evidence: Evidence) -> list[str]:
    try:
        return list(ask(evidence))
    except (FedmedgenError, OSError, LookupError, TypeError, ValueError, AttributeError) as fault:
        return [f"this can't be checked: {type(fault).__name__}: {fault}"]


def _completed(evidence: Evidence) -> Iterator[str]:
    status, why = evidence.result.get("status"), evidence.result.get("reason")
    if status != FINISHED:
        yield f"the run has not completed: its status is {status!r}" + (f" ({why})" if why else "")
    if not evidence.sites:
        yield "result.json names no site"
    if not (evidence.run / "generator" / "model_index.json").is_file():
        yield "the run has no generator"
    if forgotten := sorted(_sites_of_rounds(evidence.run) - set(evidence.sites)):
        yield f"rounds.csv names sites that result.json lacks: {', '.join(forgotten)}; their patients are in it too"


def _sites_of_rounds(run: Path) -> set[str]:
    if not (run / "rounds.csv").is_file():
        return set()
    with (run / "rounds.csv").open(newline="", encoding="utf-8") as stream:
        return {row["site"] for row in csv.DictReader(stream)}


def _private(evidence: Evidence) -> Iterator[str]:
    privacy = group(evidence.result, "privacy")
    if not evidence.settings.private or privacy.get("mode") != "patient" or privacy.get("epsilon") is None:
        yield "the run has no privacy (privacy=none): what it made may show patients, and is never released"
    if evidence.settings.federation.shared:
        yield "its sites share one noise: a certificate can't yet say whom such a claim holds against"


def _unit(evidence: Evidence) -> Iterator[str]:
    units = {str(site.get("unit")) for site in evidence.sites.values()}
    if len(units) != 1 or not units <= {"patient", "image"}:
        yield f"the sites protect different units ({', '.join(sorted(units)) or 'none'}): one claim can't cover them"
    said = {
        "result.json": group(evidence.result, "privacy").get("unit"),
        "the generator's card": evidence.card.get("unit"),
        "the set's datasheet.json": evidence.sheet.get("unit"),
        **{f"{site}'s policy": policy.unit for site, policy in evidence.policies.items()},
    }
    for where, unit in said.items():
        if unit not in units:
            yield f"{where} names the unit {unit!r}; the sites protect {', '.join(sorted(units))}"


def _unseeded(evidence: Evidence) -> Iterator[str]:
    """A seed lets anybody compute the noise again: harmless on public data alone."""
    data = evidence.settings.data
    seeded = evidence.settings.simulated or evidence.result.get("simulation") is not False
    seeded = seeded or any(policy.simulation for policy in evidence.policies.values())
    phantoms = evidence.settings.simulated and not data.root  # a deployment's folders are in each site's own policy
    public = (data.public or phantoms) and evidence.result.get("public_data") is True
    if seeded and not public:
        yield "the run is a simulation with seeded noise on data that isn't public: whoever has the seed can undo it"


def _set(evidence: Evidence) -> Iterator[str]:
    folder = evidence.run / "synthetic"
    links = [path.name for part in ("synthetic", "generator") for path in (evidence.run / part).rglob("*")
             if path.is_symlink() or not (path.is_file() or path.is_dir())]  # fmt: skip
    if links:
        yield f"{', '.join(sorted(links)[:5])}: links and devices can't be released, plain files only"
    if not (folder / "labels.csv").is_file():
        yield "the run has no synthetic set with its labels.csv"
        return
    strange = [path.name for path in folder.iterdir() if path.name not in BELONGS]
    for part, suffixes in BELONGS.items():
        there = (folder / part).glob("*")
        strange += [f"{part}/{path.name}" for path in there if path.suffix not in suffixes or not path.is_file()]
    parts = (path for path in (evidence.run / "generator").rglob("*") if path.is_file())
    strange += [f"generator/{path.name}" for path in parts if path.suffix not in OF_A_GENERATOR]
    if strange:
        yield f"{', '.join(sorted(strange)[:5])} ({len(strange)} in all): not part of a synthetic set: take it out"
    with (folder / "labels.csv").open(newline="", encoding="utf-8") as stream:
        named = {Path(row["filename"]).stem for row in csv.DictReader(stream)}
    yield from _differing("images", named, {path.stem for path in (folder / "images").glob("*")})
    masks = {path.stem for path in (folder / "masks").glob("*")}
    yield from _differing("masks", masks & named, masks)
    if evidence.sheet.get("cases") != len(named):
        yield f"the set's datasheet.json counts {evidence.sheet.get('cases')} cases; labels.csv has {len(named)}"


def _differing(what: str, named: set[str], there: set[str]) -> Iterator[str]:
    for words, odd in (("named in labels.csv but not there", named - there), ("not in labels.csv", there - named)):
        if odd:
            yield f"{what} {words}: {', '.join(sorted(odd)[:5])} ({len(odd)} in all)"


QUESTIONS: dict[str, Callable[[Evidence], Iterable[str]]] = {
    "Did the run come to its end?": _completed,
    "Was it private at all?": _private,
    "Is one unit protected everywhere?": _unit,
    "Is its noise beyond anybody's knowledge, or its data public?": _unseeded,
    "Is every site's ledger whole and within its policy?": spent.ledgers,
    "Does the claim match the mechanism, everywhere it is printed?": spent.claim,
    "Did every site's audit of this very run pass?": audited.audits,
    "Is the synthetic set whole, and nothing beside it?": _set,
    "Is the set worth releasing?": worth.worth,
}
