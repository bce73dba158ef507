"""`fedmedgen release RUN --out DIR`: the gate; `release --verify DIR`: is a release as it was signed?"""

import argparse
import json
from pathlib import Path
from typing import Any

EXAMPLE = """examples:
  fedmedgen release runs/demo --out releases/demo
  fedmedgen release runs/demo --out releases/demo --key project.key --with-generator
  fedmedgen release --verify releases/demo --public-key project.pub"""


def add(subparsers: "argparse._SubParsersAction[Any]") -> None:
    """Plug the command into the program."""
    parser = subparsers.add_parser(
        "release",
        help="the gate: a signed set with its certificate, or all reasons against it",
        description="Ask of RUN everything a release must show: budgets kept, the claim recomputed from the sites' "
        "ledgers, every site's audit of this very generator and set, and worth above the study's thresholds. Without a "
        "reason against it DIR gets the set, a datasheet, a card and a signed certificate; else every reason is "
        "printed and nothing is written but RUN/release.json. With --verify: check a release, every file of it.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run_folder", nargs="?", metavar="RUN", type=Path, help="a finished, audited run")
    parser.add_argument("--out", metavar="DIR", type=Path, help="the release, a new folder")
    key = "sign with this Ed25519 key, PEM (default: $FEDMEDGEN_KEY, else the user's own, made at first use)"
    parser.add_argument("--key", metavar="FILE", type=Path, help=key)
    parser.add_argument("--with-generator", action="store_true", help="release the generator too")
    parser.add_argument("--verify", metavar="DIR", type=Path, help="check this release")
    pinned = "the project's public key, PEM: whose signature --verify asks for"
    parser.add_argument("--public-key", metavar="FILE", type=Path, help=pinned)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Release or verify; 1 if the gate, or a file, says no."""
    from fedmedgen.errors import SettingsError

    if arguments.verify:
        if arguments.run_folder or arguments.out or arguments.key or arguments.with_generator:
            raise SettingsError("--verify DIR goes with --public-key and --json alone")
        return _verify(arguments)
    if not (arguments.run_folder and arguments.out) or arguments.public_key:
        raise SettingsError("expected `release RUN --out DIR`, or `release --verify DIR [--public-key FILE]`")
    return _release(arguments)


def _release(arguments: argparse.Namespace) -> int:
    from fedmedgen.release.bundle import release
    from fedmedgen.release.signing import public_beside

    done = release(arguments.run_folder, arguments.out, key=arguments.key, with_generator=arguments.with_generator)
    reasons = done.judgement.reasons
    if arguments.json:
        key = done.key and {"fingerprint": done.key.fingerprint, "path": str(done.key.path), "made": done.key.made}
        folder = str(done.folder) if done.folder else None
        print(json.dumps({"granted": not reasons, "reasons": reasons, "release": folder, "key": key}))
    elif done.folder and done.key:
        if done.key.made:
            print(f"made the project's key: {done.key.path}, its public half {public_beside(done.key.path)}")
            print("  keep the first to yourself and back it up; give the second to who verifies")
        print(f"released: {done.folder}\n  {len(done.judgement.checks)} checks, no reason against it")
        print(f"  certificate: {done.folder / 'certificate.html'}\n  signed by {done.key.fingerprint}")
    else:
        print("refused; nothing was released, because:")
        print("\n".join(f"  - {reason}" for reason in reasons))
    return 0 if done.judgement.granted else 1


def _verify(arguments: argparse.Namespace) -> int:
    from fedmedgen.release.verify import verify

    found = verify(arguments.verify, public_key=arguments.public_key)
    if arguments.json:
        print(json.dumps({"whole": found.whole, "faults": found.faults, "key": found.fingerprint,
                          "pinned": found.pinned, "files": found.files}))  # fmt: skip
        return 0 if found.whole else 1
    if found.whole:
        print(f"{arguments.verify}: whole, all {found.files} files as they were signed")
    else:
        print(f"{arguments.verify}: NOT as it was signed")
        print("\n".join(f"  - {fault}" for fault in found.faults))
    print(f"  key {found.fingerprint}")
    if not found.pinned:
        print("  compare it with the fingerprint that the project publishes, or give --public-key")
    return 0 if found.whole else 1
