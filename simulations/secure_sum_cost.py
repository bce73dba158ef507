"""What a secure sum costs beside a plain one: bytes, seconds and messages, by sites and numbers, for docs/results.

python -m simulations.secure_sum_cost --out docs/results
"""

import argparse
import csv
import datetime
import json
import os
import platform
import secrets
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fedmedgen.federation.secure_sum import keys, ring
from fedmedgen.federation.secure_sum.collecting import Collecting
from fedmedgen.federation.secure_sum.own_part import Grid
from fedmedgen.federation.secure_sum.party import Party
from fedmedgen.federation.secure_sum.terms import Terms
from fedmedgen.privacy.mechanism import StagePlan
from fedmedgen.privacy.randomness import Stream
from fedmedgen.privacy.shared_noise import SharedNoise
from simulations.grid_table import code_commit

COMMAND = "python -m simulations.secure_sum_cost --out docs/results"
SITES, LENGTHS = (3, 10, 20), (4000, 1_000_000)
PATIENTS = 500  # that each site declares
NOISE = 2.5


@dataclass(frozen=True)
class Row:
    """One round among so many sites; seconds are those of all of them and of the server, one after the other."""

    sites: int
    numbers: int
    bytes_a_number: int
    plain_kb: float  # of float32 that one site sends
    secure_kb: float  # that one site sends and receives, beyond the round itself
    ratio: float
    messages: int  # to a site, and as many back; a plain round has one
    noise_s: float
    masks_s: float
    lost_s: float  # of masks, where as many sites are lost as may be


@dataclass
class Sum:
    """A round whose words and vectors are counted as they would travel."""

    terms: Terms
    parts: list[np.ndarray[Any, np.dtype[np.int64]]]
    size: int = 0
    identities: dict[str, bytes] = field(default_factory=dict)

    def run(self, lost: int = 0) -> np.ndarray[Any, np.dtype[np.int64]]:
        """All phases; the last `lost` sites send no vector."""
        terms, sums = self.terms, Collecting(self.terms)
        self.identities = {site: os.urandom(keys.KEY_BYTES) for site in terms.sites}
        pinned = {site: keys.public_of(key) for site, key in self.identities.items()}
        parties: dict[str, Party] = {}
        for site in terms.sites:
            self._count(terms.to_mapping())
            parties[site], sums.adverts[site] = Party.begin(terms, site, self.identities[site])
            self._count(sums.adverts[site])
        for site in terms.sites:
            self._count(sums.adverts)
            sums.sealed[site] = parties[site].share(sums.adverts, pinned)
            self._count(sums.sealed[site])
        there = terms.sites[: len(terms.sites) - lost]
        for site, part in zip(there, self.parts, strict=False):
            self._count(sums.for_site(site))
            parties[site].receive(sums.for_site(site))
            packed = ring.pack(parties[site].masked(ring.from_whole(part, terms.width)), terms.width)
            self.size += packed.nbytes
            sums.add(site, ring.unpack(packed, terms.width))
        for site in there:
            self._count(sums.finished)
            sums.signatures[site] = parties[site].agree(sums.finished, self.identities[site])
            self._count(sums.signatures[site])
        for site in there:
            self._count(sums.signatures)
            sums.openings[site] = parties[site].unmask(sums.signatures, pinned)
            self._count(sums.openings[site]._asdict())
        return ring.to_whole(sums.sum(), terms.width)

    def _count(self, words: Any) -> None:
        self.size += len(json.dumps(words, separators=(",", ":")))


def measured(sites: int, length: int) -> Row:
    """One round; its sum is checked against that of the same vectors without masks."""
    shared = SharedNoise.of(sites, colluders=1)
    stage = StagePlan(
        name="statistics", sample_rate=1, noise_multiplier=NOISE, clip_norm=1, steps=1, denominator_patients=PATIENTS
    )
    grid = Grid(stage, shared, length)
    start = time.perf_counter()
    parts = [grid.part(iter(()), Stream.system()) for _ in range(sites)]
    noise = time.perf_counter() - start
    names = tuple(f"site-{number:02}" for number in range(sites))
    seconds, size = {}, 0
    for lost in (0, sites - shared.threshold):
        terms = Terms(
            session=secrets.token_hex(16), task="0" * 64, attempt=1, sites=names, threshold=shared.threshold,
            colluders=1, length=length, width=grid.width(sites * PATIENTS),
        )  # fmt: skip
        one, start = Sum(terms, parts), time.perf_counter()
        found = one.run(lost)
        seconds[lost] = time.perf_counter() - start
        assert np.array_equal(found, np.sum(parts[: sites - lost], axis=0))
        size = size or one.size
    plain, secure = 4 * length / 1000, size / sites / 1000
    return Row(
        sites, length, grid.width(sites * PATIENTS), round(plain, 1), round(secure, 1), round(secure / plain, 3), 5,
        round(noise, 3), round(seconds[0], 3), round(seconds[sites - shared.threshold], 3),
    )  # fmt: skip


def rows() -> Iterator[Row]:
    for length in LENGTHS:
        for sites in SITES:
            yield measured(sites, length)


def page(found: Sequence[Row]) -> list[str]:
    head = ("sites", "numbers", "bytes a number", "plain, kB", "secure, kB", "ratio", "messages", "noise, s",
            "masks, s", "masks, some lost, s")  # fmt: skip
    return [
        "# What a secure sum costs",
        "",
        f"`{COMMAND}`, {datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, commit {code_commit()}.",
        "",
        "One round in one process, protocol and noise alone, without Flower's framing, without patients and disks.",
        "*plain*: the float32 vector that a site sends in a plain round. *secure*: everything that a site sends and",
        "receives in the five phases, but for the round itself, which both have. Seconds are of all sites and the",
        "server, one after the other, on a machine that did other work, too. *some lost*: as many sites as may be send",
        "no vector.",
        "",
        f"| {' | '.join(head)} |",
        f"|{' --- |' * len(head)}",
        *[f"| {' | '.join(f'{value:,}' for value in asdict(one).values())} |" for one in found],
    ]


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    out = parser.parse_args(words).out
    found = list(rows())
    with (out / "secure-sum-cost.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(asdict(found[0])))
        writer.writeheader()
        writer.writerows(asdict(one) for one in found)
    (out / "secure-sum-cost.md").write_text("\n".join(page(found)) + "\n")
    sys.stdout.write(f"{out / 'secure-sum-cost.md'}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
