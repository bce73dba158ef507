"""`fedmedgen release RUN --out DIR`: the gate."""

import argparse
from typing import Any


def add(subparsers: "argparse._SubParsersAction[Any]") -> None:
    """Plug the command into the program."""
