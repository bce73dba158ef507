"""`fedmedgen submit STUDY.yaml`: a study for a deployment's server."""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedmedgen.deployment.project import ServerConfig
    from fedmedgen.deployment.studies import StudyRecord

POLL_SECONDS = 1.0
EXAMPLE = """a study's file:
  name: first
  overrides: [study=folder, privacy=eps1, federation.min_sites=3, "data.classes=[normal,tuberculosis]"]

The words are those of `fedmedgen simulate`. Sites read their own radiographs, whatever data.root says; classes and
mask classes must be named. The run folder is runs/NAME of the server's kit.

example: fedmedgen submit server/study.yaml"""


def add(subparsers: "argparse._SubParsersAction[Any]") -> None:
    """Plug the command into the program."""
    parser = subparsers.add_parser(
        "submit",
        help="have a study carried out by a deployment",
        description="Check a study's settings, hand it to the server of this machine, and wait for its end: exit "
        "status 0 only if it was completed. The study goes on if this command is ended.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("study", metavar="STUDY.yaml", type=Path, help="the study: a name and words as for simulate")
    parser.add_argument("--no-wait", action="store_true", help="return once it is handed over")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Submit, and wait for the end."""
    from fedmedgen.cli.main import INTERRUPTED
    from fedmedgen.deployment import health
    from fedmedgen.deployment.submitting import submit

    record, server = submit(arguments.study)
    if not health.answers(server.health_port):
        sys.stderr.write("warning: no server answers: nothing will run until `fedmedgen serve` does\n")
    try:
        record = record if arguments.no_wait else _wait(server, record, quiet=arguments.json)
    except KeyboardInterrupt:
        where = f"http://127.0.0.1:{server.health_port}/health"
        sys.stderr.write(f"{record.name} goes on without this command, in {record.out}; how it is: curl {where}\n")
        return INTERRUPTED
    if arguments.json:
        print(json.dumps({"name": record.name, "status": record.status, "out": record.out, "reason": record.reason}))
    elif arguments.no_wait:
        print(f"handed over: {record.name}; its results will be in {record.out}")
    else:
        print(f"{record.name}: {record.status}" + (f", {record.reason}" if record.reason else f", {record.out}"))
    return 0 if arguments.no_wait or record.status == "completed" else 1


def _wait(server: "ServerConfig", record: "StudyRecord", *, quiet: bool) -> "StudyRecord":
    from fedmedgen.deployment.serving import studies_folder
    from fedmedgen.deployment.studies import ENDED, progress_of, read

    said = ""
    while record.status not in ENDED:
        time.sleep(POLL_SECONDS)
        record = read(studies_folder(server) / f"{record.name}.json", Path(server.runs))
        now = f"{record.status}{progress_of(record)}"
        if now != said and not quiet:
            sys.stderr.write(f"{record.name}: {now}\n")
            said = now
    return record
