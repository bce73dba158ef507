"""`fedmedgen join SITE.yaml`: a site's node, kept running."""

import argparse
import signal
from pathlib import Path
from typing import Any


def add(subparsers: "argparse._SubParsersAction[Any]") -> None:
    """Plug the command into the program."""
    parser = subparsers.add_parser(
        "join",
        help="take part in a deployment until told to stop",
        description="Run Flower's SuperNode with the kit's key, behind a guard that runs no bundle whose SHA-256 is "
        "not in the site's policy. Connects out to the server, and again whenever it has to. Does not start with "
        "a simulation's policy, nor where no patient can be read. Ends on SIGTERM or Ctrl-C with all that it started; "
        "logs in state/logs, security.jsonl beside the ledger.",
        epilog="example: fedmedgen join north/site.yaml",
    )
    parser.add_argument("config", metavar="SITE.yaml", type=Path, help="the site's settings, in its kit")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Take part until a signal comes."""
    from fedmedgen.deployment.project import SiteConfig
    from fedmedgen.deployment.site_node import SiteNode

    node = SiteNode(SiteConfig.read(arguments.config))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: node.stop.set())
    node.run()
    return 0
