"""Whom a site held out of one run: the smallest share of all rounds, and the key that drew it."""

import contextlib
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from fedmedgen.errors import RunError
from fedmedgen.privacy.head import make_folder

FOLDER = "held-out"


@dataclass(frozen=True)
class HoldoutRecord:
    """One run's record at one site: an audit compares with nobody who took part in any of its rounds."""

    path: Path

    @classmethod
    def of(cls, site_folder: Path, run: str) -> "HoldoutRecord":
        return cls(site_folder / FOLDER / f"{hashlib.sha256(run.encode()).hexdigest()[:16]}.json")

    def note(self, share: float, key: bytes) -> None:
        """Before a round: the patients below `share` under `key` stay out of it. A smaller share or another key lasts.

        **Raises** `RunError` if that can't be written: then nothing may be computed.
        """
        share_before, key_before = self._read() if self.path.is_file() else (share, _print_of(key))
        least = min(share, share_before) if key_before == _print_of(key) else 0.0
        if self.path.is_file() and least == share_before:
            return
        draft = self.path.with_suffix(f".{os.getpid()}.draft")
        try:
            make_folder(self.path.parent, 0o700)
            draft.write_text(json.dumps({"share": least, "key": key_before}))
            draft.replace(self.path)
        except OSError as error:
            raise RunError(f"whom this site holds out can't be written: {error}: nothing was computed") from error
        finally:
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)

    def share(self, key: bytes) -> float:
        """The share that stayed out of every round.

        **Raises** `RunError` if nothing was noted, or under another key: nobody can say then who took part.
        """
        if not self.path.is_file():
            raise RunError(f"no round of this run was noted in {self.path.parent}: is it the site's policy?")
        share, key_of_run = self._read()
        if key_of_run != _print_of(key):
            raise RunError(
                "the site's key isn't the one of this run's rounds: without that one nobody can tell who took part"
            )
        return share

    def _read(self) -> tuple[float, str]:
        try:
            known = json.loads(self.path.read_text())
            return float(known["share"]), str(known["key"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"the record of whom this site held out, {self.path}, can't be read: {error}") from error


def _print_of(key: bytes) -> str:
    return hashlib.sha256(b"holdout" + key).hexdigest()[:16]
