"""`fedmedgen ledger show|verify FILE`: what a site has spent, in numbers and words; is the record whole."""

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedmedgen.privacy.spending import PlanSpending, Spending

EXAMPLE = """examples:
  fedmedgen ledger show runs/demo-0/sites/site-1/ledger.jsonl
  fedmedgen ledger verify /var/lib/fedmedgen/ledger.jsonl --key /etc/fedmedgen/ledger.key"""
SHOWN = 12  # digits of a plan's name


def add(subparsers: "argparse._SubParsersAction[Any]") -> None:
    """Plug the command into the program."""
    parser = subparsers.add_parser(
        "ledger",
        help="what a site has spent, and is the record whole",
        description="Read a site's privacy ledger. Nothing is changed.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("action", choices=("show", "verify"), help="what was spent | is the record whole")
    parser.add_argument("file", metavar="FILE", type=Path, help="a ledger, or the snapshot in a run folder")
    parser.add_argument(
        "--key", metavar="FILE", type=Path, help="the site's ledger key; without it MACs aren't checked"
    )
    parser.add_argument("--head", metavar="FILE", type=Path, help="the ledger's head (default: FILE's name with .head)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Read, check, and say what was found; a record that isn't whole raises `LedgerError`."""
    from fedmedgen.errors import LedgerError
    from fedmedgen.privacy.ledger import head_beside, load_key, spending_in

    if not arguments.file.is_file():
        raise LedgerError(f"there is no ledger at {arguments.file}: give the file a site's policy or run folder names")
    head = arguments.head or (head_beside(arguments.file) if head_beside(arguments.file).is_file() else None)
    spending = spending_in(arguments.file, key=load_key(arguments.key) if arguments.key else None, head_path=head)
    checks = {
        "file": str(arguments.file),
        "whole": True,
        "macs_checked": bool(arguments.key),
        "head_checked": bool(head),
    }
    summary = {**checks, "lines": spending.lines}
    if arguments.action == "show":
        summary = {**summary, **account(spending)}
    if arguments.json:
        print(json.dumps(summary))
    else:
        print("\n".join(_check_words(summary) + (_words(summary) if arguments.action == "show" else [])))
    return 0


def account(spending: "Spending") -> dict[str, Any]:
    """What was spent and is left, per run, in numbers and words."""
    from fedmedgen.privacy.accountant import risk_words

    left = spending.limit and {
        "epsilon": max(0.0, spending.limit.epsilon - spending.epsilon),
        "delta": max(0.0, spending.limit.delta - spending.delta),
    }
    return {
        "epsilon": spending.epsilon,
        "delta": spending.delta,
        "limit": vars(spending.limit) if spending.limit else None,
        "left": left,
        "all_spent_by_a_torn_line": spending.closed,
        "words": risk_words(spending.epsilon, spending.delta),
        "runs": [_run(plan) for plan in spending.plans.values()],
    }


def _run(plan: "PlanSpending") -> dict[str, Any]:
    from fedmedgen.privacy.accountant import true_positive_rate
    from fedmedgen.privacy.budget import Plan

    known = Plan.from_mapping(plan.mapping)
    rate = true_positive_rate(known.parts)
    stages = [
        {**stage.to_mapping(), "steps": plan.reserved[stage.name], "steps_planned": stage.steps}
        for stage in known.stages
    ]
    return {
        "run": plan.run,
        "plan": plan.digest,
        "opened": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(plan.opened_at)),
        "epsilon": plan.epsilon,
        "epsilon_so_far": known.epsilon_after(plan.reserved),
        "delta": plan.delta,
        "stages": stages,
        "true_positive_rate_at_1pct_fpr": rate,
        "words": f"the best attacker who accepts 1 % false alarms recognises that a patient took part in {rate:.1%} "
        "of cases, all of the plan seen",
    }


def _check_words(summary: Mapping[str, Any]) -> list[str]:
    macs = "every MAC is right" if summary["macs_checked"] else "MACs not checked (give --key)"
    head = "the head fits" if summary["head_checked"] else "no head file to check against (give --head)"
    return [f"{summary['file']}: {summary['lines']} lines, whole and in order; {macs}; {head}"]


def _words(summary: Mapping[str, Any]) -> list[str]:
    limit, left = summary["limit"], summary["left"]
    of = f" of {limit['epsilon']:.4g}, left {left['epsilon']:.4g}" if limit else ""
    of_delta = f" of {limit['delta']:.3g}, left {left['delta']:.3g}" if limit else ""
    lines = [f"spent, all runs: epsilon {summary['epsilon']:.4g}{of}; delta {summary['delta']:.3g}{of_delta}"]
    lines.append(f"  {summary['words']}")
    if summary["all_spent_by_a_torn_line"]:
        lines.append("  a line was torn by a crash and couldn't be read: all that remained is spent")
    for run in summary["runs"]:
        lines.append(
            f"run {run['run']}, plan {run['plan'][:SHOWN]}, opened {run['opened']}: epsilon {run['epsilon']:.4g} "
            f"counted, {run['epsilon_so_far']:.4g} by the steps so far; delta {run['delta']:.3g}"
        )
        lines += [_stage_words(stage) for stage in run["stages"]]
        lines.append(f"  {run['words']}")
    return lines


def _stage_words(stage: Mapping[str, Any]) -> str:
    return (
        f"  {stage['name']}: {stage['steps']} of {stage['steps_planned']} steps, sample rate {stage['sample_rate']:g}, "
        f"noise multiplier {stage['noise_multiplier']:.4g}, clip {stage['clip_norm']:g}, "
        f"N {stage['denominator_patients']}"
    )
