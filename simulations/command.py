"""`fedmedgen simulate`, plugged into the program by an entry point."""

import argparse
import json
import sys

NAME = "simulate"
EXAMPLE = """examples:
  fedmedgen simulate study=demo
  fedmedgen simulate study=lungs data.root=/data/lungs privacy=eps1 --out runs/lungs-eps1
  fedmedgen simulate study=pneumonia data.partition=dirichlet data.alpha=0.5 --backend flower
  fedmedgen simulate --resume runs/lungs-eps1
"""


def add(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the program."""
    parser = subparsers.add_parser(
        NAME,
        help="run a federated study on partitioned data, from start to report",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, as study=… privacy=… rounds=…")
    parser.add_argument("--out", default="", metavar="RUN", help="the run folder (default runs/STUDY-SEED)")
    parser.add_argument("--backend", default="", choices=("in-process", "flower"), help="default: in-process")
    parser.add_argument("--resume", default="", metavar="RUN", help="go on with an interrupted run")
    parser.add_argument("--list", action="store_true", help="name the studies")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from fedmedgen.composition import studies

    if args.list:
        found = studies()
        sys.stdout.write(json.dumps(found) + "\n" if args.json else _lines(found))
        return 0
    from simulations.run import result_of, simulate

    folder = simulate(args.overrides, backend=args.backend, out=args.out, resume=args.resume)
    result = result_of(folder)
    if args.json:
        sys.stdout.write(json.dumps({**result, "run_folder": str(folder)}) + "\n")
        return 0
    lost = "".join(f"\nlost on the way: {site}: {why}" for site, why in result["lost_sites"].items())
    rounds = "1 round" if result["rounds"] == 1 else f"{result['rounds']} rounds"
    sys.stdout.write(
        f"{result['study']}: {rounds} with {len(result['sites'])} sites in {result['seconds']:.0f} s"
        f"{lost}\nreport: {folder / 'report.html'}\n"
    )
    return 0


def _lines(found: dict[str, str]) -> str:
    return "".join(f"{name:<12} {words}\n" for name, words in found.items())
