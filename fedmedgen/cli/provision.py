"""`fedmedgen provision PROJECT.yaml --out DIR`: a kit for the server and one for each site."""

import argparse
import json
from pathlib import Path
from typing import Any

EXAMPLE = """a project's file:
  name: chest-2026
  server: {names: [fed.example.org, 10.0.0.5], port: 8443}
  sites:
    - {name: north, patients_declared: 400, labelled_declared: 100, lifetime_epsilon: 10, data_layout: dicom}
    - {name: south}                  # what is left out, the hospital fills in

what is written:
  DIR/authority/     the project's own certificate authority: keep it offline
  DIR/server/        keys, certificate, settings, the app, start.sh, systemd unit, compose file, README.md
  DIR/sites/NAME/    the same for each site, with a policy to fill in: hand it over on a way you trust

Run it again after a change of the file: new sites get kits, a certificate that ends within 30 days is renewed. Keys,
policies and settings that are there are never changed; a site whose kit was moved out keeps its key. To revoke a site,
take it from the file AND delete sites/NAME.pub on the server's machine, which this command can't reach: turned away
within seconds.

example: fedmedgen provision project.yaml --out chest-2026"""


def add(subparsers: "argparse._SubParsersAction[Any]") -> None:
    """Plug the command into the program."""
    parser = subparsers.add_parser(
        "provision",
        help="kits for a server and its sites: keys, certificates, settings, start commands",
        description="Write, or bring up to date, a kit for the server and one for each site of a project.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("project", metavar="PROJECT.yaml", type=Path, help="the project: a server and its sites")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="the project's folder, new or known")
    parser.add_argument("--renew", action="store_true", help="renew the server's certificate and key now")
    parser.add_argument("--new-app", action="store_true", help="this version's app: sites must add its hash")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Provision, and say what was made, renewed and revoked."""
    from fedmedgen.deployment.kits import provision
    from fedmedgen.deployment.project import Project, read_settings

    project = read_settings(Project, arguments.project)
    done = provision(project, arguments.out, renew=arguments.renew, new_app=arguments.new_app)
    if arguments.json:
        print(json.dumps({**vars(done), "folder": str(done.folder)}))
        return 0
    for word, found in (("made", done.made), ("renewed", done.renewed), ("revoked", done.revoked)):
        print(f"{word}: {', '.join(found) or 'nothing'}")
    for name in done.revoked:
        print(f"now delete sites/{name}.pub on the server's machine: {name} is turned away within seconds")
    for name in done.kept:
        print(f"{name}'s kit isn't here; its key is kept as it is")
    print(f"the app's bundle, as sites' policies list it: {done.bundle}")
    return 0
