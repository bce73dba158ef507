"""The report's sections: each turns a record into exactly what the template prints there."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from fedmedgen.reporting import claims, figures, grids, tables, words
from fedmedgen.reporting.figures import Panel
from fedmedgen.reporting.record import Record
from fedmedgen.reporting.tables import NONE, measured, number

Figures = list[tuple[Markup, str]]


def tiles(record: Record) -> list[dict[str, str]]:
    """The few numbers that a reader should see first."""
    result = record.result
    lost = result.get("lost_sites") or {}
    rounds = result.get("rounds", NONE)
    turns = "1 round" if rounds == 1 else f"{rounds} rounds"
    traffic = tables.size((result.get("bytes_up") or 0) + (result.get("bytes_down") or 0))
    return [
        _privacy_tile(record),
        *_worth_tiles(record.metrics),
        _tile(str(len(record.part("sites"))), f"sites, {len(lost)} of them lost" if lost else "sites, none lost"),
        _tile(tables.duration(result.get("seconds")), f"for {turns}, {traffic} of traffic"),
    ]


def _tile(value: str, said: str) -> dict[str, str]:
    return {"value": value, "words": said}


def _privacy_tile(record: Record) -> dict[str, str]:
    if not claims.private(record):
        return _tile("no privacy", "plain updates were sent; there is no epsilon")
    privacy = record.part("privacy")
    unit = privacy.get("unit", "patient")
    return _tile(f"\u03b5 = {number(privacy['epsilon'])}", f"at most in this run, for each {unit} of each site")


def _worth_tiles(metrics: Mapping[str, Any]) -> list[dict[str, str]]:
    found = []
    for task, key, name in (("classification", "auc", "AUC"), ("segmentation", "dice_mean", "Dice")):
        mine, real = ((measured(metrics.get(task) or {}, row) or {}).get(key) for row in ("tstr", "trtr"))
        if mine and real:
            said = f"{name} from synthetic cases; from real ones {real['mean']:.3f}"
            found.append(_tile(f"{mine['mean']:.3f}", said))
    near = metrics.get("fidelity") or {}
    if "fd" in near:
        said = f"FD (EfficientNet-Lite0); real against real {number(near['floor']['fd'])}"
        found.append(_tile(number(near["fd"]), said))
    return found


def samples(record: Record) -> dict[str, Any]:
    """The grid of synthetic cases and phantoms."""
    cases = record.synthetic
    if cases is None or not len(cases):
        return {"samples": [], "mask_key": [], "has_phantoms": False}
    drawn = grids.rows(cases, record.phantoms, record.settings.evaluation.prior_labels)
    masked = any(case.mask is not None for case in cases)
    key = list(zip(cases.mask_classes[1:], grids.MASK_COLOURS, strict=False)) if masked else []
    return {"samples": drawn, "mask_key": key, "has_phantoms": any(row.phantoms for row in drawn)}


def sites(record: Record) -> dict[str, Any]:
    """What each site spent and gave."""
    head = ["Site", "Unit", "Declared", "Rounds", "ε this run", "ε lifetime", "Delta"]
    rows = []
    for name, site in sorted(record.part("sites").items()):
        spent = [site.get("epsilon_run"), site.get("epsilon")]
        shown = ["no privacy" if value is None else number(value, 4) for value in spent]
        delta = NONE if spent[0] is None else number(site.get("delta"))
        rows.append(
            [
                name,
                site.get("unit", NONE),
                number(site.get("patients_declared")),
                number(site.get("rounds")),
                *shown,
                delta,
            ]
        )
    return {"head": head, "rows": rows}


def training(record: Record) -> dict[str, Any]:
    """Epsilon and loss over rounds, and the sites that were lost."""
    found = _epsilon_plot(record) + (_loss_plots(record) if record.shows_sites else [])
    notes = [] if claims.private(record) else ["No epsilon is drawn: this run had no privacy."]
    if not record.shows_sites:
        notes.append("Loss and data of the sites are not drawn: that is done in simulations on public data only.")
    lost = record.result.get("lost_sites") or {}
    rows = [[name, str(why)] for name, why in lost.items()] if isinstance(lost, Mapping) else [[n, NONE] for n in lost]
    return {"plots": found, "note": " ".join(notes), "lost": rows}


def _epsilon_plot(record: Record) -> Figures:
    spent = tables.epsilon_lines(record.rounds)
    if not spent:
        return []
    target = record.part("privacy").get("epsilon_target")
    panel = Panel(
        title="Epsilon over rounds",
        x_label=f"round ({', then '.join(tables.stages(record.rounds))})",
        y_label="epsilon spent (no unit)",
        lines=spent,
        level=None if target is None else ("budget of the run", float(target)),
    )
    return [
        (figures.lines(panel), "What each site had spent after each round; it never goes above the budget of the run.")
    ]


def _loss_plots(record: Record) -> Figures:
    found = []
    for stage in tables.stages(record.rounds):
        errors = tables.loss_lines(record.rounds, stage)
        panel = Panel(
            title=f"Loss of the {stage}", x_label=f"{stage} round", y_label="training loss (no unit)", lines=errors
        )
        if errors:
            found.append((figures.lines(panel), f"Loss of the {stage} at each site. {words.MEANINGS['loss']}"))
    return found


def files(record: Record) -> dict[str, Any]:
    """Files that were set aside, gathered by reason."""
    rejected = record.result.get("rejected") or []
    kinds = Counter(str(item.get("kind")) for item in rejected)
    first = {str(item.get("kind")): item for item in reversed(rejected)}
    named = {kind: f"{item.get('file')}: {item.get('reason')}" for kind, item in first.items()}
    hidden = "in result.json (a file's name may tell about a patient)"
    rows = [[kind, f"{count:,}", named[kind] if record.shows_sites else hidden] for kind, count in kinds.most_common()]
    return {"rows": rows, "words": f"{len(rejected):,} files could not be used and were left out."}


def data(record: Record) -> dict[str, Any]:
    """What each site held, in simulations on public data."""
    chart = tables.site_data(record)
    if chart is None:
        return {"plot": None}
    rows = [row for row in record.result.get("data") or [] if isinstance(row, Mapping)]
    rows = [{**row, **(row.get("classes") or {}), "classes": None} for row in rows]
    head = [name for name in dict.fromkeys(name for row in rows for name in row) if name != "classes"]
    return {
        "plot": figures.bars("Data per site", chart),
        "words": "Training images of each class at each site.",
        "head": [str(name).replace("_", " ").capitalize() for name in head],
        "rows": [[_cell(row.get(name)) for name in head] for row in rows],
    }


def _cell(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {count}" for name, count in value.items())
    return NONE if value is None else value if isinstance(value, str) else number(value)


def cost(record: Record) -> dict[str, Any]:
    """Traffic, time, memory and what ran."""
    result = record.result
    found: Figures = []
    if record.rounds:
        found.append(
            (
                figures.bars("Traffic", tables.traffic(record.rounds)),
                "Bytes of model updates, for each site in the whole run.",
            )
        )
    if record.part("stage_seconds"):
        found.append((figures.bars("Time", tables.stage_time(record)), "Wall-clock time of each stage."))
    facts = [
        (
            "Traffic",
            f"{tables.size(result.get('bytes_up'))} from the sites, {tables.size(result.get('bytes_down'))} to them",
        ),
        ("Time", tables.duration(result.get("seconds"))),
        ("Memory", f"{number(result.get('peak_rss_mb'))} MB at most"),
        ("Machine", _cell(result.get("machine"))),
        (
            "Run by",
            f"{result.get('backend', NONE)}, commit {result.get('commit') or NONE}, seed {record.settings.seed}",
        ),
    ]
    return {"plots": found, "facts": facts}
