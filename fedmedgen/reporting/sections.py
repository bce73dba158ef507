"""The report's sections: each turns a record into exactly what the template prints there."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from fedmedgen.reporting import figures, grids, tables, words
from fedmedgen.reporting.figures import Panel
from fedmedgen.reporting.record import Record
from fedmedgen.reporting.tables import NONE, measured, number

Figures = list[tuple[Markup, str]]


def tiles(record: Record) -> list[dict[str, str]]:
    """The few numbers that a reader should see first."""
    result, metrics = record.result, record.metrics
    sites = record.part("sites")
    epsilon = record.part("privacy").get("epsilon")
    privacy = "no privacy" if epsilon is None else f"ε {number(epsilon)}"
    promise = "updates were sent in the clear" if epsilon is None else f"at most, for any {_unit(record)} of any site"
    found = [{"value": privacy, "words": promise}]
    for task, key, name in (("classification", "auc", "AUC"), ("segmentation", "dice_mean", "Dice")):
        mine, real = ((measured(metrics.get(task) or {}, row) or {}).get(key) for row in ("tstr", "trtr"))
        if mine and real:
            found.append(
                {
                    "value": f"{mine['mean']:.3f}",
                    "words": f"{name} from synthetic cases; from real ones {real['mean']:.3f}",
                }
            )
    near = metrics.get("fidelity") or {}
    if "fd" in near:
        found.append(
            {
                "value": number(near["fd"]),
                "words": f"FD (EfficientNet-Lite0); real against real {number(near['floor']['fd'])}",
            }
        )
    lost = result.get("lost_sites") or []
    found.append(
        {"value": str(len(sites)), "words": "sites" + (f", {len(lost)} of them lost" if lost else ", none lost")}
    )
    found.append({"value": tables.duration(result.get("seconds")), "words": f"for {result.get('rounds', NONE)} rounds, "
                  f"{tables.size((result.get('bytes_up') or 0) + (result.get('bytes_down') or 0))} of traffic"})  # fmt: skip
    return found


def _unit(record: Record) -> str:
    return str(record.part("privacy").get("unit") or "patient")


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
    """Epsilon and loss over rounds, lost sites."""
    found: Figures = []
    spent = tables.epsilon_lines(record.rounds)
    if spent:
        target = record.part("privacy").get("epsilon")
        panel = Panel(title="Epsilon over rounds", x_label="round, all stages in order", y_label="epsilon spent (no unit)",
                      lines=spent, level=("budget of the run", float(target)) if target is not None else None)  # fmt: skip
        found.append(
            (figures.lines(panel), "What each site had spent after each round; lines that agree lie on each other.")
        )
    for stage in tables.stages(record.rounds) if record.shows_sites else []:
        errors = tables.loss_lines(record.rounds, stage)
        if errors:
            panel = Panel(
                title=f"Loss of the {stage}", x_label=f"{stage} round", y_label="training loss (no unit)", lines=errors
            )
            found.append((figures.lines(panel), f"Loss of the {stage} at each site. {words.MEANINGS['loss']}"))
    lost = record.result.get("lost_sites") or []
    note = (
        ""
        if record.shows_sites
        else "Loss and data of the sites are not drawn: that is done in simulations on public data only."
    )
    if not spent:
        note = ("No epsilon is drawn: this run had no privacy. " + note).strip()
    return {
        "plots": found,
        "note": note,
        "lost": ", ".join(map(str, lost)) if lost else "None: every site stayed to the end.",
    }


def files(record: Record) -> dict[str, Any]:
    """Files that were set aside, gathered by reason."""
    rejected = record.result.get("rejected") or []
    kinds = Counter(str(item.get("kind")) for item in rejected)
    first = {str(item.get("kind")): item for item in reversed(rejected)}
    rows = [
        [kind, f"{count:,}", f"{first[kind].get('file')}: {first[kind].get('reason')}"]
        for kind, count in kinds.most_common()
    ]
    return {"rows": rows, "words": f"{len(rejected):,} files could not be used and were left out."}


def data(record: Record) -> dict[str, Any]:
    """What each site held, in simulations on public data."""
    chart = tables.site_data(record)
    if chart is None:
        return {"plot": None}
    rows = [row for row in record.result.get("data") or [] if isinstance(row, Mapping)]
    head = list(dict.fromkeys(name for row in rows for name in row))
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
