"""`fedmedgen bench`, plugged into the program by an entry point."""

import argparse
import json
import sys
from importlib import import_module
from pathlib import Path

NAMES = ("per-patient", "sampling", "rounds")
EXAMPLE = """examples:
  fedmedgen bench per-patient --json
  fedmedgen bench per-patient --out docs/results      # also a page, its JSON and a plot
  fedmedgen bench sampling --quick
"""


def add(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the program."""
    parser = subparsers.add_parser(
        "bench",
        help="the yardsticks: gradients by patient, sampling, rounds",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=NAMES, help="gradients by patient, images drawn, or federated rounds")
    parser.add_argument("--quick", action="store_true", help="the same path in seconds; figures say nothing")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    parser.add_argument("--out", default="", metavar="DIR", help="write a page, its JSON and a plot there")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from simulations.benchmarks.page import written

    yardstick = import_module(f"simulations.benchmarks.{args.what.replace('-', '_')}")
    found = yardstick.measure(quick=args.quick)
    lines = yardstick.lines(found)
    if args.out:
        written(args.what, found, lines, Path(args.out))
    sys.stdout.write(json.dumps(found) + "\n" if args.json else "\n".join(lines) + "\n")
    return 0
