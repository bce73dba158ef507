"""Is a site ready: each thing that it needs, looked at, with a word for what to do where it isn't."""

import os
import shutil
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil

from fedmedgen.data import sources
from fedmedgen.data.cases import CaseSet
from fedmedgen.deployment.project import SiteConfig
from fedmedgen.deployment.reaching import Found, reach
from fedmedgen.errors import FedmedgenError, LedgerError, PolicyError, RunError
from fedmedgen.federation.own_data import data_of
from fedmedgen.federation.policy import SitePolicy
from fedmedgen.privacy.ledger import load_key, spending_in
from fedmedgen.privacy.new_ledger import require_made
from fedmedgen.settings import DataSettings

DISK_GB, MEMORY_GB = 2.0, 4.0


def preflight(config: SiteConfig) -> list[Found]:
    """Look at everything; nothing is changed, and nothing sent but a question for the server's health."""
    of_policy, policy = _policy(config)
    found = [of_policy, _key(config)]
    if policy is not None:
        found += [_guarded("data", policy, _data), _guarded("budget", policy, _budget), _disk(Path(policy.folder))]
        found += _head(policy)
    return [*found, _memory(), _gpu(policy), *reach(config)]


def ready(found: list[Found]) -> bool:
    return all(one.status != "not ready" for one in found)


def require_fit(policy: SitePolicy) -> None:
    """What a site that joins may not lack, since it would spend its budget for nothing, or on noise that hides nobody.

    **Raises** `PolicyError` for a simulation's policy, `RunError` where no patient can be read, or the ledger's head
    lies apart and can't be written.
    """
    if policy.simulation:
        raise PolicyError(
            "the policy says `simulation: true`, so the study's seed would give the noise away: remove that line, then "
            "run `fedmedgen preflight site.yaml`"
        )
    for one in (_guarded("data", policy, _patients), *_head(policy)):
        if one.status == "not ready":
            raise RunError(f"{one.what}: {one.words}; `fedmedgen preflight site.yaml` looks at everything")


def _policy(config: SiteConfig) -> tuple[Found, SitePolicy | None]:
    try:
        policy = SitePolicy.read(Path(config.policy))
    except FedmedgenError as error:
        return Found("policy", "not ready", str(error)), None
    if policy.site != config.site:
        words = f"is of {policy.site!r}, and site.yaml of {config.site!r}: make them one"
        return Found("policy", "not ready", words), policy
    if not policy.bundles:
        return Found("policy", "not ready", "lists no bundle, so nothing could run here: add a hash"), policy
    if policy.simulation:
        return Found("policy", "not ready", "is a simulation's: its noise is seeded. Remove `simulation`"), policy
    return Found("policy", "ok", f"valid; {len(policy.bundles)} bundle(s) may run"), policy


def _key(config: SiteConfig) -> Found:
    path = Path(config.key)
    if not path.is_file():
        return Found("key", "not ready", f"expected the site's key at {path}; it is part of the kit")
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        return Found("key", "not ready", f"{path} can be read by others on this machine: chmod 600 {path}")
    return Found("key", "ok", "there, and its owner's alone")


def _data(policy: SitePolicy) -> Found:
    cases = _cases(policy)
    read = _read(policy, cases)
    if read.status == "not ready":
        return read
    if _units(cases, policy) > policy.patients_declared:
        more = f"{read.words}: more than the {policy.patients_declared} that the policy declares; raise the figure"
        return Found("data", "not ready", more)
    return replace(read, words=f"{read.words}; {policy.patients_declared} declared")


def _patients(policy: SitePolicy) -> Found:
    """Whether anybody can be read at all."""
    return _read(policy, _cases(policy))


def _read(policy: SitePolicy, cases: CaseSet) -> Found:
    units, aside = _units(cases, policy), len(cases.rejected)
    words = f"{units} {policy.unit}s in {len(cases)} images" + (f", {aside} files set aside" if aside else "")
    if units:
        return Found("data", "warning" if aside else "ok", words)
    reason = f": {cases.rejected[0].file}: {cases.rejected[0].reason}" if aside else ""
    nameless = "; no image names its patient" if len(cases) and policy.unit == "patient" else ""
    none = "" if len(cases) or aside else f": no radiograph of layout {policy.data_layout!r} at {policy.data_root}"
    return Found("data", "not ready", f"{words}{none}{nameless}{reason}")


def _cases(policy: SitePolicy) -> CaseSet:
    return sources.read_own(data_of(policy, DataSettings()), layout=policy.data_layout, mask_suffix=policy.mask_suffix)


def _units(cases: CaseSet, policy: SitePolicy) -> int:
    return len(cases) if policy.unit == "image" else len({case.patient for case in cases if case.patient})


def _budget(policy: SitePolicy) -> Found:
    require_made(policy.ledger_path, key_path=policy.key_path, head_path=policy.head_path)
    spending = spending_in(policy.ledger_path, key=load_key(policy.key_path), head_path=policy.head_path)
    left, left_delta = policy.lifetime_epsilon - spending.epsilon, policy.lifetime_delta - spending.delta
    words = f"epsilon {left:.4g} left of {policy.lifetime_epsilon:g}"
    words += f", delta {left_delta:.4g} of {policy.lifetime_delta:g}"
    if min(left, left_delta) <= 0 or spending.closed:
        return Found("budget", "not ready", f"{words}: nothing can be asked any more")
    return Found("budget", "ok", words)


def _guarded(what: str, policy: SitePolicy, look: Callable[[SitePolicy], Found]) -> Found:
    try:
        return look(policy)
    except LedgerError as error:
        return Found(what, "not ready", str(error))
    except (FedmedgenError, OSError) as error:
        return Found(what, "not ready", f"can't be read: {error}")


def _disk(folder: Path) -> Found:
    place = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(place).free / 1e9
    if not os.access(place, os.W_OK):
        return Found("disk", "not ready", f"{place} can't be written to by this user")
    words = f"{free:.1f} GB free at {place}"
    return Found("disk", "ok" if free >= DISK_GB else "not ready", words + ("" if free >= DISK_GB else ": make room"))


def _head(policy: SitePolicy) -> list[Found]:
    """Where the ledger's head lies apart, each round is refused unless it can be replaced there."""
    folder = policy.head_path.parent
    if folder.resolve() == Path(policy.folder).resolve():
        return []
    if not folder.is_dir():
        return [Found("head", "not ready", f"the folder of ledger_head, {folder}, isn't there: mount its disk")]
    if not os.access(folder, os.W_OK | os.X_OK):
        words = f"{folder}, where ledger_head lies, can't be written to by this user; under systemd it must be among "
        return [Found("head", "not ready", f"{words}ReadWritePaths, in a container among the volumes")]
    return [Found("head", "ok", f"can be replaced, apart from the ledger, in {folder}")]


def _memory() -> Found:
    free = psutil.virtual_memory().available / 1e9
    words = f"{free:.1f} GB free, {os.cpu_count()} processors"
    return Found("memory", "ok", words) if free >= MEMORY_GB else Found("memory", "warning", f"{words}: little")


def _gpu(policy: SitePolicy | None) -> Found:
    import torch

    if torch.cuda.is_available():
        return Found("GPU", "ok", torch.cuda.get_device_name(0))
    if policy is not None and policy.device == "cuda":
        return Found(
            "GPU", "not ready", "the policy says device: cuda, and none is there: say auto, or mend the driver"
        )
    return Found("GPU", "ok", "none: training runs on the processor, slower")
