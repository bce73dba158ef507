"""certificate.html: one page on which a data protection officer and a radiologist both find their answer."""

from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from fedmedgen.release.cards import LIMITS
from fedmedgen.release.evidence import group
from fedmedgen.release.template import CSS, TEMPLATE
from fedmedgen.reporting import grids, words
from fedmedgen.reporting.record import Record
from fedmedgen.reporting.tables import number

Content = Mapping[str, Any]
Pairs = list[tuple[str, str]]
STRONG, MODERATE = 1.0, 4.0
NEAR, PARTLY = 0.5, 0.1  # coverage, as a share of what real images give
SAMPLES = 6
NOT_OF_PATIENTS = (
    " The figures of worth: the project vouches that the real cases they were measured on are public ones, not "
    "patients of a site."
)


def draw(content: Content, seen: Record) -> str:
    """The page of a certificate, with the first cases of the set and no chosen ones."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    rows = grids.rows(seen.synthetic, None) if seen.synthetic is not None else []
    masks = seen.synthetic.mask_classes[1:] if seen.synthetic is not None and content["set"]["masks"] else ()
    return environment.from_string(TEMPLATE).render(
        css=Markup(CSS),
        made=content,
        title=f"Synthetic radiographs of the study {content['study']}",
        lead=_lead(content),
        tiles=_tiles(content),
        officer=_officer(content),
        radiologist=_radiologist(content),
        samples=[(row.name, row.synthetic[:SAMPLES]) for row in rows if row.synthetic],
        key=list(zip(masks, grids.MASK_COLOURS, strict=False)),
        tables=[(title, _table(content["numbers"][part])) for title, part in
                (("Privacy: promised, and attacked", "privacy"), ("Worth: measured on real images", "worth"))],
        sites=_sites(content),
        audits=[(site, group(audit, "verdict").get("words", [])) for site, audit in content["audits"].items()],
    )  # fmt: skip


def _lead(content: Content) -> str:
    of_set, promise = content["set"], content["claim"]
    masks = f" with masks of {', '.join(of_set['mask_classes'][1:])}" if of_set["masks"] else ""
    return (
        f"{of_set['cases']} images{masks}, of the classes {', '.join(of_set['classes']) or 'none'}, drawn by a "
        f"generator that {len(content['sites'])}{' simulated' * content['simulation']} sites trained together without "
        "pooling their radiographs. All "
        f"{len(content['checks'])} checks of the gate passed: the set may leave, under a promise of epsilon "
        f"{number(promise['epsilon'])} to every {promise['unit']}."
    )


def _tiles(content: Content) -> Pairs:
    promise, named = content["claim"], {row["name"]: row for row in content["numbers"]["worth"]}
    tiles = [
        (f"ε = {number(promise['epsilon'])}", f"{_strength(promise['epsilon'])} privacy for each {promise['unit']}"),
        (f"{promise['tpr_at_1pct_fpr_at_most']:.1%}", "of participants found at most, at 1 % false accusations"),
    ]
    for name, said in (("AUC", "AUC"), ("Dice", "Dice")):
        if name in named:
            tiles.append((number(named[name]["value"]), f"{said} on real images, learned from this set alone"))
    return [*tiles, (f"{named['coverage']['value']:.0%}", "of real images have a synthetic one nearby")]


def _strength(epsilon: float) -> str:
    return "strong" if epsilon <= STRONG else "moderate" if epsilon <= MODERATE else "weak, but proven,"


def _officer(content: Content) -> Pairs:
    promise, unit = content["claim"], content["claim"]["unit"]
    return [
        ("Is a person's image in it?", "No site's patient's. Every image is drawn by the generator; the real ones "
         "stayed at their sites, and only updates with noise on them left."
         f"{_public_people(promise)}"),
        ("What is promised?", f"({number(promise['epsilon'])}, {number(promise['delta'])})-differential privacy: "
         f"whether one {unit} of a site takes part or not changes what the site sends so little that "
         f"{promise['words']}. Epsilon was computed anew from each site's ledger for this certificate."),
        ("For whom?", f"{_unit_words(unit)} {words.one(unit).capitalize()} with images at several sites has the sum of "
         f"their epsilons, {number(promise['epsilon_sum'])} if at all."),
        ("Whom must one trust?", "One's own site alone. The promise holds even if the server and all other sites work "
         "together against it."),
        ("Was it attacked?", _attacked(content)),
        ("Is the set anonymous?", "That is a legal question, which this page doesn't answer. It bounds in numbers what "
         "can be learned about a person (singling out, linking, inferring); a person weighs them in the case at hand."),
        ("What isn't covered?", "What a whole site's data say of all its patients together; how long a site computed; "
         f"earlier and later runs on the same patients, which add up (see the table of sites).{_simulated(content)}"),
        ("Who vouches for it?", f"The holder of the key {content['key']['fingerprint']}. Compare it with what the "
         "project publishes, and check this folder by: fedmedgen release --verify FOLDER"),
    ]  # fmt: skip


def _public_people(promise: Mapping[str, Any]) -> str:
    named = promise["public_images"]
    return "" if named == "none" else f" Public images were used beside them: {named}."


def _unit_words(unit: str) -> str:
    if unit == "patient":
        return "Each patient: all images of one person at one site are protected together."
    return "Each image: patient ids were missing, so a person with several images is protected less."


def _simulated(content: Content) -> str:
    return (
        " The sites were simulated on public data, with noise from a seed."
        if content["simulation"]
        else NOT_OF_PATIENTS
    )


def _attacked(content: Content) -> str:
    audits = content["audits"].values()
    kept = sum("kept" in group(audit, "membership") for audit in audits)
    said = f"Yes, at {len(content['audits'])} sites; nothing was found against the promise, which is no proof of it."
    if all(group(audit, "canaries").get("ceiling", 0) <= content["claim"]["epsilon"] for audit in audits):
        said += " So few canaries were planted that they couldn't have contradicted it."
    tail = f" At {kept} of them the results on patients stay there, as they must." if kept else ""
    return f"{said}{tail} What was found stands below."


def _radiologist(content: Content) -> Pairs:
    of_set = content["set"]
    height, width = of_set["size"]
    rows = {row["name"]: row for row in content["numbers"]["worth"]}
    tasks = ("classification", "segmentation")
    learned = [words.task_verdict(group(content["evaluation"], task), task) for task in tasks]
    return [
        ("What is in it?", f"{of_set['cases']} grey images of {height} x {width} pixels, far fewer than a film has: "
         "fine detail is not there. The first of each class are shown below, none chosen."),
        ("Are the labels right?", "A label says what the generator was asked to draw. No radiologist has read them."),
        ("Does it look real?", _likeness(content, rows["coverage"]["value"])),
        ("What can be learned from it?", " ".join(filter(None, learned)) or "That was not measured."),
        ("May I use it in care?", f"No. {LIMITS}"),
    ]  # fmt: skip


def _likeness(content: Content, coverage: float) -> str:
    real = group(group(group(content, "evaluation"), "fidelity"), "floor").get("coverage") or 1.0
    said = "Mostly" if coverage >= NEAR * real else "In part" if coverage >= PARTLY * real else "Hardly"
    return (
        f"{said}: {coverage:.0%} of real images have a synthetic one nearby, as an image network sees them; among real "
        f"images it is {real:.0%}. Whether anatomy is right no number here tells."
    )


def _table(rows: list[dict[str, Any]]) -> list[tuple[str, str, str, str]]:
    return [(row["name"], value if isinstance(value := row["value"], str) else number(value), row["threshold"],
             row["words"]) for row in rows]  # fmt: skip


def _sites(content: Content) -> list[list[str]]:
    rows = []
    for site, known in content["sites"].items():
        of = f"{number(known['epsilon_lifetime'])} of {number(known['limit']['epsilon'])}"
        seal = "seals checked" if known["macs_checked"] else "chain checked, seals by the site alone"
        declared = number(known["patients_declared"])
        rows.append([site, declared, number(known["epsilon_run"]), number(known["epsilon_recomputed"]), of, seal])
    return rows
