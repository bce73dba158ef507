"""A site's personal layers: trained with the rest, kept in the site's own folder from round to round, never sent.

**Guarantee** They cost nothing beside the plan. Each step's gradient of all parameters, personal ones included, is
clipped as one vector and gets the plan's noise, so the personal layers are an output of the same releases; what later
rounds send depends on patients only through those and the later releases, as adaptive composition allows.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from fedmedgen.errors import RunError
from fedmedgen.federation.egress import Arrays
from fedmedgen.federation.messages import Request
from fedmedgen.training.checkpoints import load_arrays, save_arrays

KEPT = 3  # rounds: as many as stored replies


@dataclass(frozen=True)
class PersonalLayers:
    """One run's at one site."""

    folder: Path

    @classmethod
    def of(cls, folder: Path, request: Request) -> "PersonalLayers":
        """The run's name is a server's word, so its hash names the folder."""
        return cls(folder / "personal" / hashlib.sha256(f"{request.run} {request.stage}".encode()).hexdigest()[:32])

    def before(self, round_number: int) -> Arrays:
        """As the last round before this one left them; none before the first, or where the file is spoiled."""
        for place in reversed(self._places()):
            if _round(place) < round_number:
                try:
                    return {name: value.numpy() for name, value in load_arrays(place).items()}
                except RunError:
                    continue
        return {}

    def keep(self, round_number: int, arrays: Arrays) -> None:
        """On disk when this returns."""
        if arrays:
            tensors = {name: torch.from_numpy(value.copy()) for name, value in arrays.items()}
            for place in self._places():
                if _round(place) > round_number:  # of a run of the same name that went further before
                    place.unlink(missing_ok=True)
            save_arrays(self.folder / f"{round_number}.safetensors", tensors)
            for place in self._places()[:-KEPT]:
                place.unlink(missing_ok=True)

    def _places(self) -> list[Path]:
        found = [file for file in self.folder.glob("*.safetensors") if re.fullmatch(r"\d+", file.stem)]
        return sorted(found, key=_round)


def _round(place: Path) -> int:
    return int(place.stem)
