"""Stands in for `flwr-clientapp` at a site: runs an app bundle only if its hash is in the site's policy.

Run by its path, never imported by the bundle's process as part of `fedmedgen`: that would hide the bundle's own copy.
"""

import hashlib
import importlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

POLICY = "FEDMEDGEN_POLICY"  # the path of the site's policy, set by the site's launcher
BUNDLE = "FEDMEDGEN_BUNDLE"  # the checked bundle's hash, for the bundle's own code
CLIENTAPP = "flwr-clientapp"
INSTALLS = "--allow-runtime-dependency-installation"


class BundleError(Exception):
    """The bundle may not run here."""


def check_bundle(content: bytes, policy: Path) -> str:
    """The SHA-256 of a bundle that the policy lists.

    **Raises** `BundleError` for any other.
    """
    digest = hashlib.sha256(content).hexdigest()
    rules = yaml.safe_load(policy.read_text()) or {}
    listed = rules.get("bundles") or ()
    if digest not in listed:
        with suppress(OSError):
            folder = policy.resolve().parent / str(rules.get("folder", ""))
            _beside("security_log").note(folder, "refused", what="bundle", sha256=digest)
        raise BundleError(
            f"the server sent a bundle of SHA-256 {digest}; this site's policy lists {len(listed)} bundles, and it is "
            "none of them: have the bundle checked, then add its hash to `bundles` in the policy"
        )
    return digest


def guard(runtime: Any, policy: Path, folder: Path) -> None:
    """Put the check into Flower's client process before it unpacks, and strip text from the errors it sends.

    A checked bundle is unpacked afresh into `folder` and loaded from there: Flower's own cache names a bundle by eight
    digits of its hash and by words that the server chooses.
    """
    install, loader, error = runtime.install_from_fab, runtime.get_load_client_app_fn, runtime.Error

    def checked_install(content: bytes, **_: object) -> Path:
        os.environ[BUNDLE] = check_bundle(content, policy)
        installed: Path = install(content, install_dir=folder, skip_prompt=True)
        return installed

    def load_installed(**_: object) -> Callable[..., Any]:
        (installed,) = (folder / "apps").iterdir()
        found: Callable[..., Any] = loader(default_app_ref="", app_path=str(installed), multi_app=True)
        return found

    def without_text(code: int, **_: object) -> Any:
        return error(code=code, reason="see the site's own log")

    runtime.install_from_fab, runtime.get_load_client_app_fn = checked_install, load_installed
    runtime.Error = without_text


def main(words: Sequence[str]) -> None:
    """Run the Flower program called `words[0]`, if it is the client's, with the check in place."""
    if words[0] != CLIENTAPP or INSTALLS in words:
        raise SystemExit(f"a site runs {CLIENTAPP} alone, and installs nothing for it; got {' '.join(words)}")
    _beside("bound").end_with_parent()
    runtime = importlib.import_module("flwr.supernode.runtime.run_clientapp")
    command = importlib.import_module("flwr.supernode.cli.flwr_clientapp")
    with tempfile.TemporaryDirectory(prefix="fedmedgen-bundle-") as folder:
        guard(runtime, Path(os.environ[POLICY]), Path(folder))
        sys.argv = list(words)
        command.flwr_clientapp()


def _beside(name: str) -> Any:
    """A module of this folder, by its path."""
    spec = importlib.util.spec_from_file_location(f"_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main(sys.argv[1:])
