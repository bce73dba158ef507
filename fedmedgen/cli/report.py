"""`fedmedgen report RUN`: draw the report of a run again."""

import argparse
import json
from pathlib import Path
from typing import Any

EXAMPLE = "example:\n  fedmedgen report runs/demo"


def add(subparsers: "argparse._SubParsersAction[Any]") -> None:
    """Plug the command into the program."""
    parser = subparsers.add_parser(
        "report",
        help="draw the report of a run again",
        description="Draw RUN/report.html again from what the run folder holds.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run_folder", metavar="RUN", type=Path, help="a run folder")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the page and say where it is."""
    from fedmedgen.reporting.report import write_report

    page = write_report(arguments.run_folder)
    print(json.dumps({"report": str(page)}) if arguments.json else page)
    return 0
