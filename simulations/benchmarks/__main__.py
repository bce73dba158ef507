"""`python -m simulations.benchmarks …` is `fedmedgen bench …` where the program isn't installed."""

import argparse
import sys

from simulations.benchmarks.command import add

parser = argparse.ArgumentParser(prog="python -m simulations.benchmarks")
add(parser.add_subparsers(required=True))
arguments = parser.parse_args(["bench", *sys.argv[1:]])
sys.exit(arguments.run(arguments))
