"""Which sites may come: the public keys in the server's folder, as registered with its SuperLink."""

import hashlib
import json
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from fedmedgen.deployment.flower_cli import FlowerCli, KeyTakenError, NoNodeError
from fedmedgen.errors import RunError

logger = logging.getLogger(__name__)
GONE = "unregistered"


@dataclass
class Members:
    """Keeps the SuperLink's registrations as the folder says; `file` names each site's node for the server's app."""

    keys: Path
    file: Path
    cli: FlowerCli
    known: dict[str, dict[str, str]] = field(default_factory=dict)  # by site: node, and the key's SHA-256
    online: tuple[str, ...] = ()
    refused: dict[str, str] = field(default_factory=dict)  # by site: the SHA-256 of a key that can't come

    def __post_init__(self) -> None:
        if self.file.is_file():
            self.known = _read(self.file)

    def keep(self) -> None:
        """Register keys that are new, unregister those that are gone or replaced."""
        wanted = {path.stem: path for path in sorted(self.keys.glob("*.pub"))}
        hashes = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in wanted.items()}
        for name in [name for name, entry in self.known.items() if hashes.get(name) != entry["key"]]:
            self._try(name, lambda name: self._changed(name, wanted.get(name), hashes.get(name, "")))
        self.refused = {name: digest for name, digest in self.refused.items() if hashes.get(name) == digest}
        for name in sorted(set(wanted) - set(self.known) - set(self.refused)):
            self._try(name, lambda name: self._come(name, wanted[name], hashes[name]))

    def look(self) -> None:
        """Note which sites are connected now; those that Flower has no more are tried afresh."""
        status = self.cli.nodes()
        for name in [name for name, one in self.known.items() if status.get(int(one["node"]), GONE) == GONE]:
            self._forget(name)
        self.online = tuple(name for name, one in self.known.items() if status.get(int(one["node"])) == "online")

    def said(self) -> dict[str, str]:
        """Each site's state, in a word."""
        there = {name: "online" if name in self.online else "away" for name in tuple(self.known)}
        return there | dict.fromkeys(self.refused, "refused")

    def _come(self, name: str, path: Path, digest: str) -> None:
        try:
            node = self.cli.register(path, name)
        except KeyTakenError:  # in an earlier life of this key, or with an answer that got lost
            found = self.cli.find(path)
            if found is None:
                raise
            node, status = found
            if why := self._why_not(name, node, status):
                self.refused[name] = digest
                logger.error("site %s is refused: %s", name, why)
                return
        self.known[name] = {"node": str(node), "key": digest}
        self._write()
        logger.warning("site %s may come", name)

    def _why_not(self, name: str, node: int, status: str) -> str:
        """Why the node that has a site's key can't be the site's; nothing where it can."""
        anew = f"make a new one (delete sites/{name}/site.key, provision again)"
        if status == GONE:
            return f"a key that was revoked can't come back: {anew}"
        others = [other for other, one in self.known.items() if int(one["node"]) == node]
        return f"its key is that of {others[0]}: {anew}" if others else ""

    def _changed(self, name: str, path: Path | None, digest: str) -> None:
        """Another file, or none: the site must leave, unless only what stands around its key is another."""
        node = int(self.known[name]["node"])
        found = self.cli.find(path) if path else None
        if found and found[0] == node and found[1] != GONE:
            self.known[name]["key"] = digest
            self._write()
        else:
            self._leave(name)

    def _leave(self, name: str) -> None:
        with suppress(NoNodeError):  # done before, with an answer that got lost
            self.cli.unregister(int(self.known[name]["node"]))
        self._forget(name)
        logger.warning("site %s may come no more", name)

    def _forget(self, name: str) -> None:
        del self.known[name]
        self._write()

    def _try(self, name: str, step: Callable[[str], None]) -> None:
        try:
            step(name)
        except RunError as error:
            logger.error("site %s: %s", name, error)

    def _write(self) -> None:
        draft = self.file.with_suffix(".draft")
        with draft.open("w") as file:
            file.write(json.dumps(self.known, indent=1))
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self.file)


def _read(file: Path) -> dict[str, dict[str, str]]:
    """**Raises** `RunError` where it is damaged."""
    try:
        known = json.loads(file.read_text())
        return {name: {"node": str(int(one["node"])), "key": str(one["key"])} for name, one in known.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise RunError(
            f"{file} is damaged ({error}): delete it and superlink.db beside it, then serve again; all sites are "
            "registered anew, and studies go on from their checkpoints"
        ) from error
