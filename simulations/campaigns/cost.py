"""What the ledger costs a round, in milliseconds, by the length of its chain."""

import itertools
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fedmedgen.privacy.chain import START, Head, digest_of, sealed_line
from fedmedgen.privacy.head import draft_head, settle_head
from fedmedgen.privacy.ledger import Limit, load_key
from fedmedgen.privacy.mechanism import StagePlan
from simulations.campaigns.victims import LIFETIME, ledger_in

LINES = (0, 100, 1000, 5000)
TIMES = 40
PARTS = ("first look", "open", "reserve", "complete", "round")
LIMIT = Limit(LIFETIME.epsilon, 1.0)
STAGE = StagePlan(
    name="generator", steps=10_000, sample_rate=0.02, noise_multiplier=1.0, clip_norm=1.0, denominator_patients=1000
)
MAPPING = {"delta": 1e-6, "stages": [STAGE.to_mapping()]}


def measured(folder: Path, lines: int, times: int = TIMES) -> dict[str, list[float]]:
    """Milliseconds of each part of a round, as a site that has just started pays them, `times` over."""
    _filled(folder, lines)
    found: dict[str, list[float]] = {part: [] for part in PARTS}
    for number in range(times):
        for part, value in in_a_child(partial(_round, folder, number)).items():
            found[part].append(value)
    return found


def median_and_95(values: Sequence[float]) -> tuple[float, float]:
    return statistics.median(values), sorted(values)[round(0.95 * (len(values) - 1))]


def in_a_child(work: Callable[[], dict[str, float]]) -> dict[str, float]:
    """What the work gives back when done in a process that remembers no ledger."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(write, json.dumps(work()).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        found: dict[str, float] = json.loads(pipe.read())
    os.waitpid(child, 0)
    return found


def _round(folder: Path, number: int) -> dict[str, float]:
    """What `Site.train` asks of its ledger: is the reply stored, is it reserved, open, reserve, complete."""
    ledger, plan, run, request = ledger_in(folder), digest_of(MAPPING), f"timed-{number}", f"{number:064x}"
    stamps = [time.perf_counter()]
    ledger.spent()
    stamps.append(time.perf_counter())
    ledger.find(request)
    ledger.open_plan(run, plan, MAPPING, epsilon=0.1, delta=1e-6, limit=LIMIT)
    stamps.append(time.perf_counter())
    ledger.reserve(run, plan, "generator", 10, request)
    stamps.append(time.perf_counter())
    ledger.complete(request, "0" * 64)
    stamps.append(time.perf_counter())
    parts = [1000 * (after - before) for before, after in itertools.pairwise(stamps)]
    return dict(zip(PARTS, [*parts, sum(parts)], strict=True))


def _filled(folder: Path, lines: int) -> None:
    """A ledger of so many lines: a plan, 32 rounds reserved and answered, the next plan."""
    ledger_in(folder).spent()
    key, head, data = load_key(folder / "site.key"), Head(0, START), b""
    for number in range(lines):
        run, place = divmod(number, 65)
        named = {"run": f"run-{run}", "plan": digest_of(MAPPING)}
        event: dict[str, Any] = {"event": "complete", "request": f"{number - 1:064d}", "reply": "0" * 64}
        if place == 0:
            limit = vars(LIMIT)
            event = {"event": "open", "epsilon": 0.1, "delta": 1e-6, **named, "mapping": MAPPING, "limit": limit}
        elif place % 2:
            event = {"event": "reserve", "steps": 10, **named, "stage": "generator", "request": f"{number:064d}"}
        line, head = sealed_line({**event, "at": 0}, head, key)
        data += line
    (folder / "ledger.jsonl").write_bytes(data)
    (folder / "ledger.jsonl").chmod(0o600)
    if lines:
        settle_head(draft_head(folder / "ledger.head", head, key), folder / "ledger.head")
