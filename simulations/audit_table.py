"""Studies with canaries planted and patients held out, run and audited at every site: docs/results/audits.md.

python -m simulations.audit_table --out docs/results

A run whose folder holds its result, and a site's audit that is there, aren't made again.
"""

import argparse
import datetime
import json
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from fedmedgen.audit.site_audit import audit
from simulations.grid_table import code_commit, machine
from simulations.run import result_of, simulate

COMMAND = "python -m simulations.audit_table --out docs/results"
WATCHED = ("audit.canaries=200", "audit.holdout=0.2")
STUDIES: dict[str, tuple[str, ...]] = {
    "audit-none": ("study=audit", "privacy=none", "generator.local_steps=1200"),
    "audit-eps10": ("study=audit", "privacy=eps10"),
    "audit-eps1": ("study=audit", "privacy=eps1"),
    "pneumonia-none": ("study=pneumonia", "privacy=none", *WATCHED),
    "pneumonia-eps10": ("study=pneumonia", "privacy=eps10", *WATCHED),
    "pneumonia-eps1": ("study=pneumonia", "privacy=eps1", *WATCHED),
    "lungs-none": ("study=lungs", "privacy=none", *WATCHED),
    "lungs-eps10": ("study=lungs", "privacy=eps10", *WATCHED),
    "lungs-eps1": ("study=lungs", "privacy=eps1", *WATCHED),
}
Row = dict[str, Any]


def rows_of(name: str, runs: Path) -> list[Row]:
    """A row for each site of a study, which is run and audited where that wasn't done."""
    run = runs / name
    if not (run / "result.json").is_file():
        simulate([*STUDIES[name], "runtime.server_threads=1"], out=str(run))
    result = result_of(run)
    return [_row(name, site, run, result) for site in sorted(result["sites"])]


def page(rows: Sequence[Row]) -> Iterator[str]:
    """The table as people read it."""
    yield from ("# What the audits found in the studies", "", f"`{COMMAND}`", "")
    yield f"- {datetime.datetime.now(datetime.UTC).date()}, commit {code_commit()}, {machine()}; seed 0"
    yield "- 200 canaries at each site, which prove 3.58 at most at 95 % confidence; a fifth of the patients held out"
    yield "  (half in study=audit); the best of all attacks, picked after the fact, which flatters the attacker"
    yield "- TSTR: a classifier trained on the synthetic set alone, tested on real cases; those held out teach nothing"
    yield from ("", f"| {' | '.join(HEAD)} |", f"|{' --- |' * len(HEAD)}")
    for row in rows:
        yield f"| {' | '.join(str(row[name]) for name in HEAD)} |"
    yield from ("", "Each run's words:", "")
    shown = dict.fromkeys(row["run"] for row in rows)
    yield from (f"- {name}: `fedmedgen simulate {' '.join(STUDIES[name])}`" for name in shown)
    if left := [name for name in STUDIES if name not in shown]:
        yield from ("", f"Not run yet: {', '.join(left)}.")


HEAD = (
    "run", "site", "patients in, out", "claim", "epsilon proved", "best attack", "AUC (95 %)",
    "nearer to training: features, pixels (chance)", "TSTR AUC", "coverage", "audit",
)  # fmt: skip


def _row(name: str, site: str, run: Path, result: Mapping[str, Any]) -> Row:
    kept = run / "sites" / site / "audit.json"
    found = json.loads(kept.read_text()) if kept.is_file() else audit(run, site).found
    attacks = {key: row for key, row in found["membership"].items() if "auc" in row}
    best = max(attacks, key=lambda key: float(attacks[key]["auc"]))
    low, high = attacks[best]["ci"]["auc"]
    claim, canaries = found["claim"]["epsilon"], found["canaries"]
    metrics = result.get("metrics", {})
    tstr = metrics.get("classification", {}).get("tstr", {}).get("auc", {})
    return {
        "run": name,
        "site": site,
        "patients in, out": f"{attacks[best]['members']}, {attacks[best]['holdout']}",
        "claim": "none" if claim is None else f"{claim:.2f}",
        "epsilon proved": f"{canaries['epsilon_lower_bound']:.2f}",
        "best attack": f"{best} of {len(attacks)}",
        "AUC (95 %)": f"{attacks[best]['auc']:.2f} ({low:.2f} to {high:.2f})",
        HEAD[7]: ", ".join(_share(found["copies"][kind]) for kind in ("features", "pixels")),
        "TSTR AUC": f"{tstr['mean']:.3f}" if tstr else "not measured",
        "coverage": f"{metrics['fidelity']['coverage']:.3f}" if "coverage" in metrics.get("fidelity", {}) else "",
        "audit": "passed" if found["verdict"]["passed"] else "failed",
    }


def _share(part: Mapping[str, Any]) -> str:
    low, high = part["chance"]
    return f"{part['nearer_to_train']:.0%} ({low:.0%} to {high:.0%})"


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--done", action="store_true", help="only what has been run: start no study")
    args = parser.parse_args(words)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    rows: list[Row] = []
    done = [name for name in STUDIES if (args.runs / name / "result.json").is_file()]
    for name in track(done if args.done else list(STUDIES), "studies", console=Console(stderr=True)):
        rows += rows_of(name, args.runs)
        (args.out / "audits.md").write_text("\n".join(page(rows)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
