"""What a site knows of the canaries of one run: their coins and their scores. It never leaves the site by a message."""

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmedgen.errors import RunError
from fedmedgen.privacy.canaries import Planted
from fedmedgen.privacy.head import make_folder, sync_folder
from fedmedgen.privacy.randomness import Stream
from fedmedgen.seeds import seed_of

FOLDER = "canaries"


@dataclass(frozen=True)
class CanaryRecord:
    """One run's canaries at one site, on disk: a file that its owner alone can read."""

    path: Path

    @classmethod
    def of(cls, site_folder: Path, run: str) -> "CanaryRecord":
        return cls(site_folder / FOLDER / f"{hashlib.sha256(run.encode()).hexdigest()[:16]}.json")

    def plant(self, *, run: str, kind: str, count: int, stream: Stream) -> None:
        """Toss the coins, once in a run's life; they are on disk before anything is computed with them."""
        with self._turn():
            if self.path.is_file():
                return
            coins = (stream.uniform(count) < 0.5).astype(int).tolist()
            seed = int(stream.uniform(1)[0] * 2**52)
            self._write({"run": run, "kind": kind, "count": count, "seed": seed, "included": coins, "scores": {}})

    def planted(self, stage: str, number: int) -> Planted:
        """The canaries of one round, in directions of its own, with no score yet."""
        known = self.read()
        return Planted(np.array(known["included"], bool), seed_of(known["seed"], "canaries", stage, number))

    def keep(self, digest: str, stage: str, scores: NDArray[np.float64]) -> None:
        """Note what one request's answer showed; answered anew, the newer answer's scores replace the older's."""
        with self._turn():
            known = self.read()
            known["scores"][digest] = {"stage": stage, "scores": scores.tolist()}
            self._write(known)

    def read(self) -> dict[str, Any]:
        """**Raises** `RunError` where there is no record, or it can't be read."""
        try:
            known: dict[str, Any] = json.loads(self.path.read_text())
            fits = len(known["included"]) == known["count"] and set(known["included"]) <= {0, 1}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"the record of the canaries, {self.path.name}, can't be read: {error}") from error
        if not fits:
            raise RunError(f"the record of the canaries, {self.path.name}, was changed: its coins don't fit its count")
        return known

    def total(self) -> NDArray[np.float64]:
        """The evidence on each canary over all that was released; 0 where nothing was."""
        known = self.read()
        parts = [np.array(kept["scores"], np.float64) for kept in known["scores"].values()]
        return np.sum(parts, axis=0) if parts else np.zeros(known["count"])

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        make_folder(self.path.parent, 0o700)
        handle = os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _write(self, known: dict[str, Any]) -> None:
        draft = self.path.with_suffix(f".{os.getpid()}.draft")
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "w") as file:
            json.dump(known, file)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self.path)
        sync_folder(self.path.parent)
