"""The program: finds its commands, runs one, turns errors into words and exit codes."""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from fedmedgen import __version__
from fedmedgen.errors import FedmedgenError, SettingsError

COMMANDS = (
    "data",
    "phantoms",
    "emit",
    "segment",
    "evaluate",
    "audit",
    "release",
    "report",
    "ledger",
    "selfcheck",
    "provision",
    "preflight",
    "serve",
    "join",
    "submit",
)
PLUGGED = {
    "simulate": "run a federated study on partitioned data, from start to report",
    "bench": "the yardsticks: gradients by patient, sampling, rounds",
}
GROUP = "fedmedgen.commands"
Subparsers = Any

DONE, REFUSED, USAGE, INTERRUPTED = 0, 1, 2, 130


def main(words: Sequence[str] | None = None) -> int:
    """Run the program; 0 done, 1 refused or failed, 2 wrong usage."""
    parser = _parser()
    args = _parse(parser, words)
    level = logging.DEBUG if args.verbose else logging.WARNING
    logging.basicConfig(level=level, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    try:
        return int(args.run(args))
    except SettingsError as error:
        return _say(error, USAGE)
    except FedmedgenError as error:
        return _say(error, REFUSED)
    except OSError as error:  # a file, a disk or the network; --verbose says where in the program
        logging.getLogger(__name__).debug("what went wrong", exc_info=error)
        return _say(_words(error), REFUSED)
    except KeyboardInterrupt:
        return _say("interrupted; go on with --resume where the command has it", INTERRUPTED)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fedmedgen",
        description="Federated generative models for radiographs under patient-level differential privacy.",
        epilog="example: fedmedgen simulate study=demo",
    )
    parser.add_argument("--version", action="version", version=f"fedmedgen {__version__}")
    parser.add_argument("--verbose", action="store_true", help="log what happens to standard error")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for name in COMMANDS:
        import_module(f"fedmedgen.cli.{name}").add(subparsers)
    for name, words in PLUGGED.items():
        _plug(subparsers, name, words)
    return parser


def _parse(parser: argparse.ArgumentParser, words: Sequence[str] | None) -> argparse.Namespace:
    """Parse words where overrides (key=value) may stand after options too, which argparse alone refuses."""
    args, extra = parser.parse_known_args(words)
    odd = [word for word in extra if word.startswith("-") or "=" not in word or not hasattr(args, "overrides")]
    if odd:
        parser.error(f"unrecognized arguments: {' '.join(odd)}")
    if extra:
        args.overrides = [*args.overrides, *extra]
    return args


def _plug(subparsers: Subparsers, name: str, words: str) -> None:
    """Add a command that another package provides, or one that says where it lives."""
    for point in entry_points(group=GROUP, name=name):
        try:
            add: Callable[[Subparsers], None] = point.load()
        except ModuleNotFoundError as error:
            if error.name != point.module.partition(".")[0]:
                raise
            continue
        add(subparsers)
        return
    parser = subparsers.add_parser(name, help=words + " (not in this installation)", add_help=False)
    parser.add_argument("rest", nargs=argparse.REMAINDER)
    parser.set_defaults(run=lambda _: _missing(name))


def _missing(name: str) -> int:
    raise FedmedgenError(
        f"'fedmedgen {name}' lives with the studies, which are not part of this installation: "
        "clone the fedmedgen repository and run `make install` there"
    )


def _words(error: OSError) -> str:
    """Which path, as far as it is known, and what went wrong with it."""
    places = " and ".join(str(place) for place in (error.filename, error.filename2) if place is not None)
    return f"{places} can't be used: {error.strerror or error}" if places else f"{type(error).__name__}: {error}"


def _say(error: object, code: int) -> int:
    sys.stderr.write(f"error: {error}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
