"""Public arrays at a site: what a server sent once stays in the site's folder, for requests that name its hash.

They come from the server, so nothing of a patient is in them; they are never part of a reply.
"""

import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fedmedgen.errors import LacksArraysError, RunError
from fedmedgen.federation.egress import Arrays
from fedmedgen.federation.messages import Request, digest_of
from fedmedgen.training.checkpoints import load_arrays, save_arrays

KEPT = 4  # the ones used last: a few runs, or a few rounds of arrays that change

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PublicArrays:
    """The few sets of public arrays that a site was sent last."""

    folder: Path

    def keep(self, request: Request) -> None:
        """Write what came along, on disk when this returns; what came has passed the site's checks."""
        if request.public_arrays:
            tensors = {name: torch.from_numpy(value.copy()) for name, value in request.public_arrays.items()}
            save_arrays(self._place(request.public), tensors)
            self._forget_old()

    def complete(self, request: Request) -> Request:
        """The request with the public arrays that it names.

        **Raises** `LacksArraysError` where the site hasn't them whole.
        """
        if not request.public or request.public_arrays:
            return request
        found = self._find(request.public)
        if found is None:
            raise LacksArraysError(f"public arrays {request.public[:12]} are not here: the server must send them along")
        return replace(request, public_arrays=found)

    def _find(self, digest: str) -> Arrays | None:
        place = self._place(digest)
        try:
            arrays = {name: value.numpy() for name, value in load_arrays(place).items()}
            os.utime(place)
        except (RunError, OSError):
            return None
        if digest_of(arrays) == digest:
            return arrays
        logger.warning("the public arrays kept in %s are damaged: they count as lost", place.name)
        return None

    def _place(self, digest: str) -> Path:
        return self.folder / f"{digest}.safetensors"

    def _forget_old(self) -> None:
        kept = sorted(self.folder.glob("*.safetensors"), key=lambda file: file.stat().st_mtime_ns, reverse=True)
        for place in kept[KEPT:]:
            place.unlink(missing_ok=True)
