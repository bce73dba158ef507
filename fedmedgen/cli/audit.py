"""`fedmedgen audit RUN --site NAME`: what the generator leaks, seen from a site."""

import argparse
from typing import Any


def add(subparsers: "argparse._SubParsersAction[Any]") -> None:
    """Plug the command into the program."""
