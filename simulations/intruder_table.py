"""Callers who must not get in, tried on a deployment of real processes: docs/results/intruders.md.

python -m simulations.intruder_table --out docs/results
"""

import argparse
import datetime
import platform
import tempfile
import time
from pathlib import Path

from simulations.campaigns import intruders
from simulations.campaigns.deployment import Deployment, wait_for
from simulations.ledger_campaign import commit

SITES = ("north", "west")
LOG_SECONDS = 2.0
UNNOTED = ("at the caller, which turned away: the server never heard of it", "nothing: it is not refused")


def tried(folder: Path) -> list[str]:
    """A line of the table for each intruder."""
    deployment = Deployment(folder, sites=SITES)
    deployment.provision()
    try:
        deployment.start("server")
        wait_for(lambda: set(deployment.health("server").get("sites", ())) == set(SITES), 120, "the registrations")
        lines = [f"| a registered site | {intruders.good_site(deployment)} | |"]
        (deployment.kit("server") / "sites" / "west.pub").unlink()
        wait_for(lambda: "west" not in deployment.health("server").get("sites", {"west": ""}), 120, "the revocation")
        return lines + [_line(deployment, name) for name in intruders.INTRUDERS]
    finally:
        deployment.stop()


def _line(deployment: Deployment, name: str) -> str:
    attempt, _ = intruders.INTRUDERS[name]
    before = len(deployment.security("server"))
    heard = attempt(deployment)
    time.sleep(LOG_SECONDS)
    noted = [f"{line['path']} {line['why']}".strip() for line in deployment.security("server")[before:]]
    about = " ".join((attempt.__doc__ or "").split())
    where = "; ".join(dict.fromkeys(noted)) or UNNOTED[name in intruders.NOT_REFUSED]
    return f"| {name}: {about} | {heard} | {where} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        lines = tried(Path(folder))
    page = [
        "# Who must not get in",
        "",
        "`python -m simulations.intruder_table --out docs/results`",
        "",
        f"- {datetime.date.today()}, commit {commit()}, {platform.machine()}; callers have another address",
        "- the same calls are a test: `tests/deployment/test_deployment.py`",
        "- **let in: fresh replay.** Flower 1.41 has a site sign the time alone, and takes such words for 305 s with",
        "  any body. They cross no line in the open: who has them is inside TLS, at the server or the site",
        "",
        "| who | what they heard | what the server's security log says |",
        "| --- | --- | --- |",
        *lines,
    ]
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "intruders.md").write_text("\n".join(page) + "\n")


if __name__ == "__main__":
    main()
