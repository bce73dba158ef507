"""A secure sum among real processes, one of which is killed on the way: docs/results/secure-sum-deployment.md.

python -m simulations.secure_deployment --out docs/results
"""

import argparse
import datetime
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fedmedgen.privacy.ledger import load_key, spending_in
from simulations.campaigns.deployment import Deployment
from simulations.grid_table import code_commit, machine

COMMAND = "python -m simulations.secure_deployment --out docs/results"
SITES, LOST = ("east", "north", "south", "west"), "west"
WORDS = (
    "federation=secure-sum", "federation.threshold=3", "federation.min_sites=3", "rounds=2", "statistics.share=0.5",
    "statistics.dimension=6", "generator.with_masks=false", "data.mask_classes=[]", "data.classes=[normal,nodule]",
    "prior.phantoms=40", "federation.round_seconds=90",
)  # fmt: skip


@dataclass(frozen=True)
class Found:
    """How the study ended, what it claims, its rows, and what stands in each site's own ledger: epsilon, and alone."""

    status: str
    claims: Mapping[str, Any]
    rows: Sequence[Mapping[str, str]]
    ledgers: Mapping[str, tuple[float, float]]
    seconds: float


def played(folder: Path) -> Found:
    """Provision, start, submit; one site is killed after the first round of the generator and stays away."""
    deployment = Deployment(folder, sites=SITES)
    deployment.provision()
    for site in SITES:
        file = deployment.kit(site) / "policy.yaml"
        policy = yaml.safe_load(file.read_text())
        policy["secure_sum"]["lifetime_epsilon_alone"] = 100.0  # what a site's own people decide
        file.write_text(yaml.safe_dump(policy, sort_keys=False))
    try:
        deployment.start("server", *SITES)
        deployment.wait_until_online(*SITES)
        begun = time.monotonic()
        deployment.submit("shared", *WORDS)
        while not any(row["stage"] == "generator" for row in deployment.table("shared")):
            time.sleep(1)
        deployment.kill(LOST)
        record = deployment.wait_end("shared")
        seconds = time.monotonic() - begun
    finally:
        deployment.stop()
        deployment.kill_all()
    result = json.loads((Path(record.out) / "result.json").read_text())
    return Found(record.status, result["privacy"], deployment.table("shared"), _ledgers(deployment), seconds)


def _ledgers(deployment: Deployment) -> dict[str, tuple[float, float]]:
    found = {}
    for site in SITES:
        policy = deployment.policy(site)
        spent = spending_in(policy.ledger_path, key=load_key(policy.key_path), head_path=policy.head_path)
        found[site] = (spent.epsilon, spent.alone)
    return found


def page(found: Found) -> Iterator[str]:
    yield from ("# A secure sum among real processes", "", f"`{COMMAND}`", "")
    shared, epsilon = found.claims["secure_sum"], found.claims["epsilon"]
    yield f"- {datetime.date.today().isoformat()}, commit {code_commit()}, {machine()}, busy with other work, too"
    yield f"- a server and {len(SITES)} sites, each from its kit, over TLS; three must finish a sum. {LOST} was killed"
    yield "  (SIGKILL) after the generator's first round and stayed away"
    yield f"- ended {found.status} after {found.seconds:.0f} s; claims, by {found.claims['accountant']}: epsilon"
    yield f"  {epsilon:.4f} against the server and {shared['colluders']} colluding site,"
    yield f"  {shared['epsilon_alone']:.4f} if all other sites collude"
    yield from ("", "| stage | round | site | status | why | kB up | kB down |", f"|{' --- |' * 7}")
    for row in found.rows:
        up, down = (float(row[name] or 0) / 1000 for name in ("bytes_up", "bytes_down"))
        cells = (*(row[name] for name in ("stage", "round", "site", "status", "reason")), f"{up:.1f}", f"{down:.1f}")
        yield f"| {' | '.join(cells)} |"
    yield from ("", "What each site's own ledger says it has spent:", "", "| site | epsilon | if all others collude |")
    yield "| --- | --- | --- |"
    yield from (f"| {site} | {epsilon:.4f} | {alone:.4f} |" for site, (epsilon, alone) in found.ledgers.items())
    yield from ("", f"The study: `{' '.join(WORDS)}`")


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    args = parser.parse_args(words)
    with tempfile.TemporaryDirectory(prefix="fedmedgen-secure-", ignore_cleanup_errors=True) as folder:
        found = played(Path(folder))
    (args.out / "secure-sum-deployment.md").write_text("\n".join(page(found)) + "\n")
    return int(found.status != "completed")


if __name__ == "__main__":
    sys.exit(main())
