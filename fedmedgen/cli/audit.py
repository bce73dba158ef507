"""`fedmedgen audit RUN --site NAME`: what the generator leaks, seen from a site."""

import argparse
import json
from pathlib import Path
from typing import Any

EXAMPLE = """examples:
  fedmedgen simulate study=audit privacy=eps1 --out runs/audit-eps1
  fedmedgen audit runs/audit-eps1 --site site-1"""


def add(subparsers: "argparse._SubParsersAction[Any]") -> None:
    """Plug the command into the program."""
    parser = subparsers.add_parser(
        "audit",
        help="what a generator leaks, seen from a site",
        description="Attack RUN's generator with the site's own patients: membership inference against patients held "
        "out, canaries that were planted in the run, copies in the synthetic set. Everything measured goes to "
        "audit.json in the site's own folder and stays there; what may leave goes to RUN/audits/NAME.json.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run_folder", metavar="RUN", type=Path, help="a finished run")
    parser.add_argument("--site", required=True, metavar="NAME", help="which of its sites")
    parser.add_argument(
        "--real", type=Path, metavar="DIR|NPZ", help="where the site's cases lie now (default: as in the run)"
    )
    parser.add_argument(
        "--policy", type=Path, metavar="FILE", help="a real site's policy: its folder and data are used"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write what may leave the site there too")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Attack, write, and say what came of it; 1 if the audit failed."""
    from fedmedgen.audit.site_audit import audit
    from fedmedgen.reporting.report import write_report

    done = audit(arguments.run_folder, arguments.site, real=arguments.real, policy=arguments.policy)
    write_report(arguments.run_folder)
    if arguments.out:
        arguments.out.write_bytes(done.told.read_bytes())
    if arguments.json:
        print(json.dumps(done.found))
    else:
        passed = done.found["verdict"]["passed"]
        print(f"{arguments.site}: {'nothing found against the claim' if passed else 'FAILED'}")
        print("\n".join(f"  {words}" for words in done.found["verdict"]["words"]))
        print(f"  claim: {done.found['risk']['words']}")
        print(f"kept at the site: {done.kept}\nmay leave it: {done.told}")
    return 0 if done.found["verdict"]["passed"] else 1
