"""The engine against one-at-a-time gradients, once for each model at a site, before its first private step."""

import hashlib
import json
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedmedgen import __version__
from fedmedgen.data.cases import Case
from fedmedgen.federation import local_round
from fedmedgen.privacy.selfcheck import check_engine
from fedmedgen.settings import Settings

_passed: set[str] = set()  # in this process, at any simulated site of it


def check_once(folder: Path, settings: Settings, stage: str) -> None:
    """Run the self-check unless this model, engine and precision have passed it here.

    **Raises** `SelfCheckError` naming the layers whose gradients are wrong.
    """
    privacy, mapping = settings.privacy, settings.to_mapping()
    data = {key: mapping["data"][key] for key in ("size", "classes", "mask_classes")}
    code = [__version__, version("diffusers"), version("opacus")]
    how = [*code, privacy.engine, privacy.precision, torch.__version__]
    what = [stage, mapping["generator"], mapping["segmenter"], data, *how]
    mark = folder / hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]
    if mark.is_file():
        return
    if mark.name not in _passed:
        model, rows = local_round.build_model(settings, stage), partial(random_rows, settings, stage)
        check_engine(privacy.engine, model, local_round.loss_of(stage), rows, precision=privacy.precision)
        _passed.add(mark.name)
    folder.mkdir(parents=True, exist_ok=True)
    mark.write_text(json.dumps(what))


def random_rows(settings: Settings, stage: str, num_patients: int) -> list[dict[str, Tensor]]:
    """Rows of patients made of noise: the check reads no real case."""
    generator = torch.Generator().manual_seed(0)
    random = np.random.default_rng(0)
    height, width = settings.data.size
    rows = []
    for number in range(num_patients):
        cases = [
            Case(
                image=random.uniform(-1, 1, (1, height, width)).astype(np.float32),
                name=f"noise-{number}-{image}",
                label=number % max(1, len(settings.data.classes)) if settings.data.classes else None,
                mask=random.integers(0, max(1, len(settings.data.mask_classes)), (height, width)).astype(np.uint8),
            )
            for image in range(1 + number % 3)
        ]
        rows.append(local_round.draw_rows(settings, stage, 2, cases, generator))
    return rows
