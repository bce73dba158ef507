"""`fedmedgen ledger show|verify FILE`, what a site has spent, and is the record whole; `create POLICY`, a new ledger.

A real site's key, ledger and head are made by `create`, by a person, once: a site never makes them itself.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedmedgen.privacy.accountant import Parts
    from fedmedgen.privacy.spending import PlanSpending, Spending

EXAMPLE = """examples:
  fedmedgen ledger create /etc/fedmedgen/policy.yaml
  fedmedgen ledger show runs/demo-0/sites/site-1/ledger.jsonl
  fedmedgen ledger verify /var/lib/fedmedgen/ledger.jsonl --key /etc/fedmedgen/ledger.key"""
SHOWN = 12  # digits of a plan's name
TOLERANCE = 1.001  # another version of the accountant may round differently


def add(subparsers: "argparse._SubParsersAction[Any]") -> None:
    """Plug the command into the program."""
    parser = subparsers.add_parser(
        "ledger",
        help="what a site has spent, and is the record whole; make a new one",
        description="Read a site's privacy ledger, which changes nothing; or make a real site's key, empty ledger and "
        "head, once, where its policy says. A ledger that is lost counts as spent: lower the policy's lifetime budget "
        "by it before making a new one.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = "what was spent | is the record whole | make a new one"
    parser.add_argument("action", choices=("show", "verify", "create"), help=actions)
    what = "a ledger, or the snapshot in a run folder; for create, the site's policy"
    parser.add_argument("file", metavar="FILE", type=Path, help=what)
    parser.add_argument(
        "--key", metavar="FILE", type=Path, help="the site's ledger key; without it MACs aren't checked"
    )
    parser.add_argument("--head", metavar="FILE", type=Path, help="the ledger's head (default: FILE's name with .head)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Do what was asked, and say what was found or made; a record that isn't whole raises `LedgerError`."""
    return _create(arguments) if arguments.action == "create" else _read(arguments)


def _create(arguments: argparse.Namespace) -> int:
    from fedmedgen.errors import SettingsError
    from fedmedgen.federation.policy import SitePolicy
    from fedmedgen.privacy.new_ledger import create_ledger

    if arguments.key or arguments.head:
        raise SettingsError("create takes the places of key and head from the policy: leave out --key and --head")
    policy = SitePolicy.read(arguments.file)
    create_ledger(policy.ledger_path, key_path=policy.key_path, head_path=policy.head_path)
    made = {"ledger": str(policy.ledger_path), "head": str(policy.head_path), "key": str(policy.key_path)}
    if arguments.json:
        print(json.dumps({"site": policy.site, **made}))
    else:
        print("\n".join([f"a new ledger for {policy.site}, nothing spent:", *(f"  {k}: {v}" for k, v in made.items())]))
    return 0


def _read(arguments: argparse.Namespace) -> int:
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
    """What was spent and is left, per run and stage, in numbers and words."""
    from fedmedgen.privacy.accountant import worst_true_positive_rate

    left = spending.limit and {
        "epsilon": max(0.0, spending.limit.epsilon - spending.epsilon),
        "delta": max(0.0, spending.limit.delta - spending.delta),
    }
    unknown = spending.closed and spending.limit is None
    return {
        "epsilon": None if unknown else spending.epsilon,
        "delta": None if unknown else spending.delta,
        "limit": spending.limit.to_mapping() if spending.limit else None,
        "left": left,
        "all_spent_by_a_torn_line": spending.closed,
        "torn_lines": [{"epsilon": epsilon, "delta": delta} for epsilon, delta in spending.torn],
        "true_positive_rate_at_1pct_fpr_at_most": 1.0
        if unknown
        else worst_true_positive_rate(spending.epsilon, spending.delta),
        "words": _total_words(spending, unknown),
        "runs": [_run(plan) for plan in spending.plans.values()],
    }


def _total_words(spending: "Spending", unknown: bool) -> str:
    from fedmedgen.privacy.accountant import risk_words

    if unknown:
        return "what was released can't be read: count the whole budget that the policy named as spent"
    return risk_words(spending.epsilon, spending.delta)


def _run(plan: "PlanSpending") -> dict[str, Any]:
    from fedmedgen.privacy.accountant import true_positive_rate, worst_true_positive_rate

    epsilon, shared = _epsilon_of(plan), plan.mapping.get("shared")
    stages = [_stage(stage, plan) for stage in plan.mapping["stages"]]
    planned, taken = _parts(stages, "steps_planned"), _parts(stages, "steps")
    rate = worst_true_positive_rate(plan.epsilon, plan.delta) if shared else true_positive_rate(planned)
    others = {"shared": {**shared, "epsilon_if_others_collude": plan.alone}} if shared else {}
    return {
        **others,
        "run": plan.run,
        "plan": plan.digest,
        "opened": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(plan.opened_at)),
        "epsilon": plan.epsilon,
        "epsilon_by_mechanism": epsilon(planned, plan.delta),
        "epsilon_so_far": epsilon(taken, plan.delta),
        "delta": plan.delta,
        "stages": stages,
        "true_positive_rate_at_1pct_fpr": rate,
        "words": f"the best attacker who accepts 1 % false alarms recognises that a patient took part in {rate:.1%} "
        "of cases, all of the plan seen",
    }


def _stage(stage: Mapping[str, Any], plan: "PlanSpending") -> dict[str, Any]:
    """A stage's mechanism, and its epsilon at the plan's delta as if it were alone."""
    from fedmedgen.errors import LedgerError

    epsilon = _epsilon_of(plan)
    known = {**stage, "steps": plan.reserved[stage["name"]], "steps_planned": stage["steps"]}
    lacking = {"sample_rate", "noise_multiplier", "clip_norm", "denominator_patients"} - set(stage)
    if lacking:
        raise LedgerError(f"stage {stage['name']!r} of run {plan.run!r} lacks {', '.join(sorted(lacking))}")
    alone = {"epsilon_alone": "steps_planned", "epsilon_alone_so_far": "steps"}
    return {**known, **{key: epsilon(_parts([known], steps), plan.delta) for key, steps in alone.items()}}


def _epsilon_of(plan: "PlanSpending") -> "Callable[[Parts, float], float]":
    """The accountant of the plan's noise."""
    from fedmedgen.privacy import accountant, skellam

    return skellam.epsilon if "shared" in plan.mapping else accountant.epsilon


def _parts(stages: Sequence[Mapping[str, Any]], steps: str) -> "Parts":
    return tuple((stage["sample_rate"], stage["noise_multiplier"], stage[steps]) for stage in stages)


def _check_words(summary: Mapping[str, Any]) -> list[str]:
    macs = "every MAC is right" if summary["macs_checked"] else "MACs not checked (give --key)"
    head = "the head fits" if summary["head_checked"] else "no head file to check against (give --head)"
    return [f"{summary['file']}: {summary['lines']} lines, whole and in order; {macs}; {head}"]


def _words(summary: Mapping[str, Any]) -> list[str]:
    lines = ["", _total(summary), f"  {summary['words']}"]
    if summary["all_spent_by_a_torn_line"]:
        lines.append("  a line was torn by a crash and couldn't be read: all that remained is spent")
    for torn in summary["torn_lines"]:
        lines.append(
            f"  a plan whose line a crash tore counts as epsilon {torn['epsilon']:.4g}, delta {torn['delta']:.3g}"
        )
    if len(summary["runs"]) > 1:
        lines.append("  epsilons of runs add, since a later run may have been chosen for what an earlier one showed")
    for run in summary["runs"]:
        lines += ["", *_run_words(run)]
    return lines


def _total(summary: Mapping[str, Any]) -> str:
    if summary["epsilon"] is None:
        return "spent, all runs: unknown"
    limit, left = summary["limit"], summary["left"]
    of = f" of {limit['epsilon']:.4g}, left {left['epsilon']:.4g}" if limit else ""
    of_delta = f" of {limit['delta']:.3g}, left {left['delta']:.3g}" if limit else ""
    return f"spent, all runs: epsilon {summary['epsilon']:.4g}{of}; delta {summary['delta']:.3g}{of_delta}"


def _run_words(run: Mapping[str, Any]) -> list[str]:
    lines = [
        f"run {run['run']}, plan {run['plan'][:SHOWN]}, opened {run['opened']}",
        f"  counts as epsilon {run['epsilon']:.4g}, delta {run['delta']:.3g}: the whole plan, from the moment it was "
        f"opened; the steps so far make {run['epsilon_so_far']:.4g}",
    ]
    if run["epsilon_by_mechanism"] > run["epsilon"] * TOLERANCE:
        lines.append(
            f"  TOO LITTLE IS COUNTED: computed anew from its steps and noise the plan costs epsilon "
            f"{run['epsilon_by_mechanism']:.4g}"
        )
    lines.append(f"  {run['words']}")
    if shared := run.get("shared"):
        lines.append(
            f"  {shared['sites']} sites share the noise: this holds against the server and {shared['colluders']} of "
            f"them; if all others collude, epsilon {shared['epsilon_if_others_collude']:.4g} is left"
        )
    lines += [_stage_words(stage) for stage in run["stages"]]
    if len(run["stages"]) > 1:
        lines.append("  composed, the stages cost less than their sum")
    return lines


def _stage_words(stage: Mapping[str, Any]) -> str:
    unfinished = stage["steps"] < stage["steps_planned"]
    so_far = f" ({stage['epsilon_alone_so_far']:.4g} so far)" if unfinished else ""
    return (
        f"  {stage['name']}: {stage['steps']} of {stage['steps_planned']} steps, "
        f"epsilon {stage['epsilon_alone']:.4g}{so_far} by itself; sample rate {stage['sample_rate']:g}, "
        f"noise multiplier {stage['noise_multiplier']:.4g}, clip {stage['clip_norm']:g}, "
        f"N {stage['denominator_patients']}"
    )
