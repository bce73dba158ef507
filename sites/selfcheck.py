"""The engine against one-at-a-time gradients, once for each model at a site, before its first private step."""

import hashlib
import json
import os
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedmedgen import __version__, devices
from fedmedgen.data.cases import Case
from fedmedgen.deployment.guard import BUNDLE
from fedmedgen.federation import local_round
from fedmedgen.privacy import kernels
from fedmedgen.privacy.selfcheck import check_engine
from fedmedgen.settings import Settings
from fedmedgen.training.rows import to_device

_passed: set[str] = set()  # in this process, at any simulated site of it


def check_once(folder: Path, settings: Settings, stage: str) -> None:
    """Run the self-check, on the device in use, unless this model and engine have passed it there under this code.

    **Raises** `SelfCheckError` naming the layers whose gradients are wrong.
    """
    privacy, device = settings.privacy, devices.device_of(settings)
    what = _words(settings, stage, device)
    mark = _mark(folder, what)
    if mark.is_file() and mark.read_text() == what:
        return
    if what not in _passed:
        model = local_round.build_model(settings, stage).to(device)
        rows = partial(random_rows, settings, stage, model)
        loss = local_round.loss_of(settings, stage)
        check = partial(check_engine, privacy.engine, model, loss, rows, precision=privacy.precision)
        with kernels.measuring():
            check()
        if (kept := _words(settings, stage, device)) != what:
            check()  # by the kernels as they are kept
        what = kept
        _passed.add(what)
    folder.mkdir(parents=True, exist_ok=True)
    _mark(folder, what).write_text(what)


def _mark(folder: Path, what: str) -> Path:
    return folder / hashlib.sha256(what.encode()).hexdigest()


def _words(settings: Settings, stage: str, device: torch.device) -> str:
    return json.dumps(_checked(settings, stage, device), sort_keys=True)


def _checked(settings: Settings, stage: str, device: torch.device) -> list[Any]:
    """Everything that a passed check speaks of: the network, the engine, its kernels, the machine and the code."""
    mapping = settings.to_mapping()
    data = {key: mapping["data"][key] for key in ("size", "classes", "mask_classes")}
    machine = [device.type, torch.get_num_threads()]
    if device.type != "cpu":
        machine += [torch.get_device_module(device).get_device_name(device), torch.backends.cudnn.version()]  # type: ignore[no-untyped-call]
    machine.append(kernels.mark())
    code = [os.environ.get(BUNDLE), __version__, torch.__version__, version("diffusers"), version("opacus")]
    how = [settings.privacy.engine, settings.privacy.precision, settings.privacy.noise_draws]
    networks = [mapping["generator"], mapping["autoencoder"], mapping["segmenter"], mapping["federation"]["personal"]]
    return [stage, *networks, data, how, machine, code]


def random_rows(settings: Settings, stage: str, model: nn.Module, num_patients: int) -> list[dict[str, Tensor]]:
    """Rows of patients made of noise, as many as the study's patients may have: the check reads no real case."""
    most = local_round.most_images(settings, stage)
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
            for image in range(1 + number % most)
        ]
        drawn = local_round.draw_rows(settings, stage, settings.privacy.noise_draws, cases, generator, model)
        rows.append(to_device(drawn, devices.device_of(settings)))
    return rows
