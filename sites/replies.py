"""Finished replies, kept under the hash of their request so that the same request gets the same bytes free."""

import hashlib
import json
import logging
import os
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import safetensors.numpy

from fedmedgen.federation.egress import Reply
from fedmedgen.privacy.head import make_folder, sync_folder
from fedmedgen.privacy.ledger import Ledger
from sites.turns import turn_in

KEPT = 3
ABANDONED_S = 3600  # the draft of a crash; a living one takes seconds

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReplyStore:
    """The last few replies of a site; an older request is a new spend.

    A file's name is the hash of its request and of its bytes, so that another reply to the same request never takes
    its place. It holds the finished reply alone: no noise, no seed.
    """

    folder: Path

    def turn(self, digest: str) -> AbstractContextManager[None]:
        """Wait until no other process answers the same request; then its reply is found here, paid.

        The few requests whose hash begins alike wait for each other too; a process that dies lets go.
        """
        return turn_in(self.folder, digest)

    def paid(self, digest: str, ledger: Ledger) -> Reply | None:
        """The stored reply whose spend the ledger holds; one that a crash kept from being noted is noted first.

        **Guarantee** what is given back has the hash that the ledger notes for the request.
        """
        spending = ledger.spent()
        noted = spending.replies.get(digest)
        if digest not in spending.requests:
            return None
        found = self._newest(digest, noted)
        if found is None:
            if noted:
                logger.warning("no stored reply to %s is what the ledger notes: if asked, a new spend", digest[:12])
            return None
        seal, reply = found
        if not noted:
            ledger.complete(digest, seal)
        return reply

    def find(self, digest: str) -> Reply | None:
        """The newest whole reply stored for the request, whatever the ledger says of it: without privacy only."""
        found = self._newest(digest)
        return found[1] if found else None

    def store(self, digest: str, reply: Reply) -> str:
        """Write the reply, readable by its owner only, on disk when this returns; the hash of its bytes."""
        make_folder(self.folder)
        data = _packed(digest, reply)
        seal = hashlib.sha256(data).hexdigest()
        place = self.folder / f"{digest}.{seal}.reply"
        draft = place.with_suffix(f".{os.getpid()}.draft")
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(place)
        sync_folder(self.folder)
        self._forget_old()
        return seal

    def _newest(self, digest: str, noted: str | None = None) -> tuple[str, Reply] | None:
        """Hash and content of the newest whole reply to the request, or of the one of the hash `noted`."""
        for place in self._newest_first(f"{digest}.{noted or '*'}.reply"):
            data = place.read_bytes()
            seal = hashlib.sha256(data).hexdigest()
            if place.name == f"{digest}.{seal}.reply" and data.startswith(_heading(digest)):
                return seal, _unpacked(data)
            logger.warning("a stored reply to %s is damaged: it counts as not stored", digest[:12])
        return None

    def _newest_first(self, names: str) -> list[Path]:
        return sorted(self.folder.glob(names), key=lambda file: file.stat().st_mtime_ns, reverse=True)

    def _forget_old(self) -> None:
        for place in self._newest_first("*.reply")[KEPT:]:
            place.unlink(missing_ok=True)
        for draft in self.folder.glob("*.draft"):
            if draft.stat().st_mtime < time.time() - ABANDONED_S:
                draft.unlink(missing_ok=True)


def _heading(digest: str) -> bytes:
    return f'{{"request": "{digest}", '.encode()


def _packed(digest: str, reply: Reply) -> bytes:
    """A line of words, then the arrays as safetensors."""
    words = {"request": digest, "config": dict(reply.config), "metrics": dict(reply.metrics)}
    arrays: bytes = safetensors.numpy.save(reply.arrays)
    return json.dumps(words).encode() + b"\n" + arrays


def _unpacked(data: bytes) -> Reply:
    words, _, arrays = data.partition(b"\n")
    head = json.loads(words)
    return Reply(config=head["config"], metrics=head["metrics"], arrays=safetensors.numpy.load(arrays))
