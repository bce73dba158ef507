"""A site's SuperNode: Flower's own program, with our guard in the place of the programs that would run a bundle.

`python -m fedmedgen.deployment.supernode POLICY [option of flower-supernode …]`
"""

import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from flwr.supercore.constant import TASK_TYPE_TO_COMMAND

from fedmedgen.deployment import guard
from fedmedgen.deployment.processes import Program
from fedmedgen.errors import PolicyError
from fedmedgen.federation.policy import SitePolicy

OWN = ("--isolation", "--node-config", guard.INSTALLS)  # options that would lead past the guard
DROPPED = (guard.BUNDLE, "FEDMEDGEN_SIMULATION", "PYTHONPATH")  # would say that a check was made, or make it moot
QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}


def main(words: Sequence[str]) -> int:
    """Run a site's SuperNode until it ends; its exit status."""
    if not words or words[0].startswith("-"):
        raise PolicyError("expected the path of the site's policy, then options of flower-supernode")
    with started(Path(words[0]), words[1:]) as process:
        signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        return process.wait()


@contextmanager
def started(policy: Path, options: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A running SuperNode of the site.

    **Raises** as `prepared`.
    """
    with prepared(policy, options) as program:
        process = subprocess.Popen(program.bound, env=dict(program.environment), cwd=program.folder)
        try:
            yield process
        finally:
            process.terminate()
            process.wait()


@contextmanager
def prepared(policy: Path, options: Sequence[str]) -> Iterator[Program]:
    """How the site's SuperNode is started; the folder of its programs lives as long as this.

    **Raises** `PolicyError` for a policy that can't be read or lists no bundle, and for options that would lead past
    the guard.
    """
    refuse_options(options)
    policy = policy.resolve()
    if not SitePolicy.read(policy).bundles:
        raise PolicyError(f"{policy} lists no bundle, so nothing could run: add the SHA-256 of one to `bundles`")
    with tempfile.TemporaryDirectory(prefix="fedmedgen-site-") as folder:
        programs, empty = Path(folder) / "bin", Path(folder) / "empty"
        write_programs(programs)
        empty.mkdir()
        flower = str(Path(sys.executable).parent / "flower-supernode")
        words = [flower, *options, "--isolation", "subprocess", "--node-config", f'policy="{policy}"']
        yield Program(words, empty, environment(programs, policy))


def refuse_options(options: Sequence[str]) -> None:
    """**Raises** `PolicyError` for an option that the site's launcher keeps for itself."""
    for option in options:
        # argparse takes any unambiguous beginning of an option for the whole
        if (name := option.partition("=")[0]).startswith("--") and any(own.startswith(name) for own in OWN):
            raise PolicyError(f"{name} is set by the site's launcher, so that every bundle passes its check")


def write_programs(folder: Path) -> None:
    """One executable for each program that Flower starts by name to run a bundle: all of them lead to the guard."""
    folder.mkdir()
    for name in sorted(set(TASK_TYPE_TO_COMMAND.values())):
        line = shlex.join([sys.executable, "-P", guard.__file__, name])
        (folder / name).write_text(f'#!/bin/sh\nexec {line} "$@"\n')
        (folder / name).chmod(0o700)


def environment(programs: Path, policy: Path) -> Mapping[str, str]:
    """The SuperNode's environment: our programs are found first, then Flower's."""
    path = os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    kept = {key: value for key, value in os.environ.items() if key not in DROPPED}
    return {**kept, **QUIET, "PATH": path, guard.POLICY: str(policy)}


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
