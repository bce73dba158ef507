"""`fedmedgen preflight SITE.yaml`: is this site ready to take part."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedmedgen.deployment.reaching import Found

COLOURS = {"ok": "green", "warning": "yellow", "not ready": "red"}


def add(subparsers: "argparse._SubParsersAction[Any]") -> None:
    """Plug the command into the program."""
    parser = subparsers.add_parser(
        "preflight",
        help="is this site ready: data, policy, budget, disk, GPU, clock, server, certificate",
        description="Look at everything a site needs before it joins. Nothing is changed; nothing is sent but a "
        "question for the server's health. Exit code 1 if something isn't ready.",
        epilog="example: fedmedgen preflight north/site.yaml",
    )
    parser.add_argument("config", metavar="SITE.yaml", type=Path, help="the site's settings, in its kit")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Look, and say what was found."""
    from fedmedgen.deployment.preflight import preflight, ready
    from fedmedgen.deployment.project import SiteConfig

    found = preflight(SiteConfig.read(arguments.config))
    if arguments.json:
        print(json.dumps({"ready": ready(found), "checks": [asdict(one) for one in found]}))
    else:
        _show(found, "ready to join" if ready(found) else "not ready yet")
    return 0 if ready(found) else 1


def _show(found: "list[Found]", verdict: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("", "", "", show_header=False, box=None)
    for one in found:
        table.add_row(one.what, f"[{COLOURS[one.status]}]{one.status}[/]", one.words)
    console = Console()
    console.print(table)
    console.print(verdict)
