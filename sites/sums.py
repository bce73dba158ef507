"""The secure sums that a site takes part in, kept from one phase to the next; each session once in the site's life."""

import logging
import os
import re
import time
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path

from fedmedgen.errors import FedmedgenError, PolicyError
from fedmedgen.federation.secure_sum.party import Party
from fedmedgen.privacy.head import sync_folder
from sites.turns import turn_in

ABANDONED_S = 86_400  # a sum that nobody has finished by then can't be gone on with, and is forgotten
DRAFT_S = 600  # a draft that old was left by a process that died
OPEN_AT_ONCE = 256  # each costs the site a file and a key, and whoever asks nothing

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sums:
    """One file a session, readable by its owner only. It holds keys and shares, and no noise; and at the end neither.

    What is left of a finished session is its name, so that it can't be begun again.
    """

    folder: Path

    def turn(self, session: str) -> AbstractContextManager[None]:
        """Wait until no other process answers in the same session; a process that dies lets go."""
        self._path(session)
        return turn_in(self.folder, session)

    def require_new(self, session: str) -> None:
        if self._path(session).exists():
            raise PolicyError(f"the session {session[:12]} was begun here before: each attempt has its own")

    def load(self, session: str) -> Party:
        path = self._path(session)
        if not path.is_file():
            raise PolicyError(f"the session {session[:12]} was never begun here")
        party = Party.from_json(path.read_text())
        if _abandoned(party):  # in a session that somebody asks for
            self._forget(party)
            raise PolicyError(f"the session {session[:12]} was begun over a day ago and is forgotten")
        return party

    def save(self, party: Party) -> None:
        """On disk when this returns: only then may an answer leave."""
        path = self._path(party.terms.session)
        draft = path.with_suffix(f".{os.getpid()}.draft")
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(party.to_json())
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        sync_folder(self.folder)

    def make_room(self) -> None:
        """Forget the sums that nobody finished.

        **Raises** `PolicyError` where so many are open that no study can be behind them.
        """
        if (count := self.forget_old()) >= OPEN_AT_ONCE:
            raise PolicyError(f"{count} secure sums are open here: finish them, or wait a day until they are forgotten")

    def forget_old(self) -> int:
        """Let go of every secret of sums begun over a day ago, and of what dead processes left; the number still open.

        Whoever asks the site for anything in the meantime doesn't keep one open.
        """
        for draft in self.folder.glob("*.draft"):
            with suppress(FileNotFoundError):
                if draft.stat().st_mtime < time.time() - DRAFT_S:
                    draft.unlink()
        left = [party for path in self.folder.glob("*.sum") if (party := _readable(path)) and party.is_open]
        for party in left:
            if _abandoned(party):
                self._forget(party)
        return sum(party.is_open for party in left)

    def _forget(self, party: Party) -> None:
        party.phase = "abandoned"
        party.forget()
        self.save(party)

    def _path(self, session: str) -> Path:
        if not re.fullmatch("[0-9a-f]{32}", session):
            raise PolicyError("a session is named by 32 hexadecimal digits")
        return self.folder / f"{session}.sum"


def _readable(path: Path) -> Party | None:
    """A damaged file keeps nobody from anything but its own session."""
    try:
        return Party.from_json(path.read_text())
    except (OSError, ValueError, LookupError, TypeError, FedmedgenError) as error:
        logger.warning("%s can't be read (%s): delete it", path.name, type(error).__name__)
        return None


def _abandoned(party: Party) -> bool:
    return party.is_open and party.begun < time.time() - ABANDONED_S
