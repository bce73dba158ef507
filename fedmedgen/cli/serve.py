"""`fedmedgen serve SERVER.yaml`: the server of a deployment, kept running."""

import argparse
import signal
from pathlib import Path
from typing import Any


def add(subparsers: "argparse._SubParsersAction[Any]") -> None:
    """Plug the command into the program."""
    parser = subparsers.add_parser(
        "serve",
        help="run a deployment's server until it is told to stop",
        description="Run Flower's SuperLink with the kit's certificate, let in the sites whose public keys lie in "
        "sites/, carry out submitted studies one after the other, and go on with those that were cut off. Other "
        "machines reach the sites' door alone. Ends on SIGTERM or Ctrl-C with all that it started; logs in state/logs.",
        epilog="example: fedmedgen serve server/server.yaml",
    )
    parser.add_argument("config", metavar="SERVER.yaml", type=Path, help="the server's settings, in its kit")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal comes."""
    from fedmedgen.deployment.project import ServerConfig
    from fedmedgen.deployment.serving import Server

    server = Server(ServerConfig.read(arguments.config))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: server.stop.set())
    server.run()
    return 0
