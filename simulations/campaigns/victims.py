"""The processes that are killed: a real site answering requests, and a ledger alone under constant writing."""

import hashlib
import json
import os
import random
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol
from unittest import mock

from fedmedgen.composition import compose
from fedmedgen.data import phantoms
from fedmedgen.data.cases import CaseSet
from fedmedgen.emission.writing import write_set
from fedmedgen.federation import local_round, plan
from fedmedgen.federation.egress import Arrays, Reply
from fedmedgen.federation.messages import Request
from fedmedgen.federation.own_data import own_cases
from fedmedgen.federation.policy import SitePolicy, for_real_sites
from fedmedgen.privacy import ledger as ledger_module
from fedmedgen.privacy.chain import digest_of
from fedmedgen.privacy.ledger import Ledger, Limit, load_or_create_key
from fedmedgen.privacy.new_ledger import create_ledger
from fedmedgen.settings import Settings
from simulations.campaigns.fork import Mark
from sites.replies import ReplyStore
from sites.site import Site

PATIENTS, ROUNDS, STEPS = 24, 40, 1
WORDS = (
    "study=demo", "smoke=true", "data.size=[16,16]", "backend=deployment", f"rounds={ROUNDS}", "segmenter.rounds=0",
    f"privacy.generator_steps={STEPS}",
)  # fmt: skip
LIFETIME = Limit(epsilon=1e6, delta=1e-3)
MAPPING = {"stages": [{"name": "generator", "steps": 1000}]}
MARKED = (
    (Ledger, "open_plan", "opening a plan"), (Ledger, "reserve", "reserving"), (Ledger, "complete", "completing"),
    (ledger_module, "_write", "writing a line"), (ledger_module, "draft_head", "drafting the head"),
    (ledger_module, "settle_head", "replacing the head"), (ReplyStore, "paid", "looking for a stored reply"),
    (ReplyStore, "store", "storing the reply"), (local_round, "run", "computing the round"),
)  # fmt: skip


@dataclass(frozen=True)
class Asking:
    """What is made once for all sites of a campaign: a study, its first weights, and a site's films."""

    settings: Settings
    noise: float
    arrays: Arrays
    folder: Path

    @classmethod
    def prepared(cls, folder: Path) -> "Asking":
        settings = for_real_sites(compose(list(WORDS)))
        classes, masks = settings.data.classes, settings.data.mask_classes
        drawn = phantoms.draw("chest", PATIENTS, size=(16, 16), seed=1, classes=classes, mask_classes=masks)
        films = folder / "films"
        write_set(CaseSet(tuple(replace(case, patient=None) for case in drawn), classes, masks), films, datasheet={})
        table = films / "labels.csv"
        first, *rows = table.read_text().splitlines()
        rows = [f"{row},p{number}" for number, row in enumerate(rows)]
        table.write_text("\n".join([f"{first},patient", *rows]) + "\n")
        arrays = local_round.trainable_arrays(local_round.build_model(settings, plan.GENERATOR))
        asking = cls(settings, plan.noise_multiplier(settings), arrays, folder)
        asking.made(folder / "first").ask("first", 1, lambda _: None)  # the self-check, once for all
        return asking

    def made(self, folder: Path) -> "RealSite":
        """A real site that has its empty ledger and, but for the first, has passed its self-check."""
        checked = self.folder / "first" / "selfcheck"
        if checked.is_dir():
            shutil.copytree(checked, folder / "selfcheck")
        policy = self.site(folder).policy
        create_ledger(policy.ledger_path, key_path=policy.key_path, head_path=policy.head_path)
        return RealSite(self, folder)

    def site(self, folder: Path, seen: Callable[[], None] = lambda: None) -> Site:
        """A real site with its state in `folder`; `seen` is told before a patient is touched."""
        policy = SitePolicy(
            site="north",
            folder=str(folder),
            patients_declared=30,
            labelled_declared=30,
            lifetime_epsilon=LIFETIME.epsilon,
            lifetime_delta=LIFETIME.delta,
            data_root=str(self.folder / "films"),
        )

        def load(settings: Settings) -> CaseSet:
            seen()
            return own_cases(policy, settings)

        return Site(policy, load)


class Subject(Protocol):
    """What is asked for rounds and killed meanwhile."""

    @property
    def folder(self) -> Path: ...

    def name(self, run: str, number: int) -> str:
        """The hash of the request for a round of a run."""
        ...

    def ask(self, run: str, number: int, mark: Mark) -> str:
        """The hash of the reply; marks each touch of the patients before it happens."""
        ...

    def stored(self, run: str, number: int) -> str | None:
        """The hash of the reply that would go out free."""
        ...


@dataclass(frozen=True)
class RealSite:
    """`Site.train` under the site's own policy: no simulation, noise from the operating system."""

    asking: Asking
    folder: Path

    def _request(self, run: str, number: int) -> Request:
        return Request(run, plan.GENERATOR, number, self.asking.settings, self.asking.noise, 0.0, self.asking.arrays)

    def name(self, run: str, number: int) -> str:
        return self._request(run, number).digest

    def ask(self, run: str, number: int, mark: Mark) -> str:
        request = self._request(run, number)
        site = self.asking.site(self.folder, partial(mark, f"touch {request.digest} {run}"))
        return hash_of(site.train(request))

    def stored(self, run: str, number: int) -> str | None:
        reply = ReplyStore(self.folder / "replies").find(self.name(run, number))
        return hash_of(reply) if reply else None


@dataclass(frozen=True)
class LedgerAlone:
    """The ledger's part of a round, without a site: as many writes as a disk takes."""

    folder: Path

    def name(self, run: str, number: int) -> str:
        return hashlib.sha256(f"{run} {number}".encode()).hexdigest()

    def ask(self, run: str, number: int, mark: Mark) -> str:
        if stored := self.stored(run, number):
            return stored
        ledger, request = ledger_in(self.folder), self.name(run, number)
        ledger.open_plan(run, digest_of(MAPPING), MAPPING, epsilon=0.1, delta=1e-9, limit=LIFETIME)
        ledger.reserve(run, digest_of(MAPPING), plan.GENERATOR, STEPS, request)
        mark(f"touch {request} {run}")
        ledger.complete(request, reply := hashlib.sha256(request.encode()).hexdigest())
        return reply

    def stored(self, run: str, number: int) -> str | None:
        return ledger_in(self.folder).spent().replies.get(self.name(run, number))


def ledger_in(folder: Path) -> Ledger:
    """The ledger in a site's folder, where the site keeps it."""
    key = load_or_create_key(folder / "site.key")
    return Ledger(folder / "ledger.jsonl", key=key, head_path=folder / "ledger.head")


def hash_of(reply: Reply) -> str:
    """SHA-256 of all that a reply would send."""
    digest = hashlib.sha256(json.dumps([dict(reply.config), dict(reply.metrics)], sort_keys=True).encode())
    for name in sorted(reply.arrays):
        digest.update(name.encode() + reply.arrays[name].tobytes())
    return digest.hexdigest()


def answer(subject: Subject, rounds: Sequence[tuple[str, int]], mark: Mark, *, torn: random.Random | None) -> None:
    """Answer requests, named by run and round, in a child that will die; with `torn`, writes are short and slow."""
    for place, name, words in MARKED:
        mock.patch.object(place, name, _saying(mark, words, getattr(place, name))).start()
    if torn:
        mock.patch.object(os, "write", partial(_short, os.write, torn)).start()
    for run, number in rounds:
        request = subject.name(run, number)
        mark(f"asked {request} {run} {number}")
        mark(f"reply {request} {subject.ask(run, number, mark)}")


def _short(write: Callable[[int, bytes], int], coins: random.Random, handle: int, data: bytes) -> int:
    time.sleep(0.0003)
    return write(handle, data[: coins.randint(1, 40)])


def _saying(mark: Mark, words: str, call: Callable[..., Any]) -> Callable[..., Any]:
    def said(*args: Any, **named: Any) -> Any:
        mark(words)
        return call(*args, **named)

    return said
