"""Which sites may come: the public keys in the server's folder, as registered with its SuperLink."""

import hashlib
import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from fedmedgen.deployment.flower_cli import FlowerCli
from fedmedgen.errors import RunError

logger = logging.getLogger(__name__)


@dataclass
class Members:
    """Keeps the SuperLink's registrations as the folder says; `file` names each site's node for the server's app."""

    keys: Path
    file: Path
    cli: FlowerCli
    known: dict[str, dict[str, str]] = field(default_factory=dict)  # by site: node, and the key's SHA-256
    online: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.file.is_file():
            self.known = _read(self.file)

    def keep(self) -> None:
        """Register keys that are new, unregister those that are gone or replaced."""
        wanted = {path.stem: path for path in sorted(self.keys.glob("*.pub"))}
        hashes = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in wanted.items()}
        for name in [name for name, entry in self.known.items() if hashes.get(name) != entry["key"]]:
            self._try(name, self._leave)
        for name in sorted(set(wanted) - set(self.known)):
            self._try(name, lambda name: self._come(name, wanted[name], hashes[name]))

    def look(self) -> None:
        """Note which sites are connected now."""
        status = self.cli.nodes()
        self.online = tuple(name for name, one in self.known.items() if status.get(int(one["node"])) == "online")

    def _come(self, name: str, path: Path, digest: str) -> None:
        self.known[name] = {"node": str(self.cli.register(path, name)), "key": digest}
        self._write()
        logger.warning("site %s may come", name)

    def _leave(self, name: str) -> None:
        self.cli.unregister(int(self.known[name]["node"]))
        del self.known[name]
        self._write()
        logger.warning("site %s may come no more", name)

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
    """**Raises** `RunError` where it is damaged: Flower would then refuse to register keys that it knows."""
    try:
        known = json.loads(file.read_text())
        return {name: {"node": str(int(one["node"])), "key": str(one["key"])} for name, one in known.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise RunError(
            f"{file} is damaged ({error}): delete it and superlink.db beside it, then serve again; all sites are "
            "registered anew, and studies go on from their checkpoints"
        ) from error
