"""What matters in fine-tuning a pre-trained denoiser: each changes one thing of a row, at 5 labels."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from fedmedgen.federation import local_round
from fedmedgen.training.checkpoints import load_arrays
from simulations.few_labels_rows import (
    SOURCES,
    Cell,
    Predict,
    denoiser_of,
    fresh,
    masks_of,
    ptdr,
    scratch,
    seeded,
    tuned,
)

OF = "ptdr-federated"
LABELS, DRAWS = 5, 3
OTHERS = {"scratch without warp": "scratch"}  # changes of another row, at its learning rate and held against it


def with_settings(cell: Cell, row: Callable[[Cell], Predict] = ptdr, **changes: object) -> Predict:
    """The row under another setting of the segmenter."""
    segmenter = replace(cell.settings.segmenter, **changes)  # type: ignore[arg-type]
    return row(_as_pretrained(cell, settings=replace(cell.settings, segmenter=segmenter)))


def source_of(row: str) -> str | None:
    """The pre-training that a row, or a change of one, starts from."""
    if row not in ABLATIONS:
        return SOURCES.get(row)
    return "short" if row == "3 rounds of pre-training" else SOURCES.get(of_row(row))


def of_row(name: str) -> str:
    """The row that an ablation changes one thing of."""
    return OTHERS.get(name, OF)


def with_rate(cell: Cell, rate: float) -> Predict:
    return ptdr(_as_pretrained(cell, rate=rate))


def some_layers(cell: Cell, parts: tuple[str, ...]) -> Predict:
    """Only these parts of the network, and the new head, are trained."""
    model = local_round.segmenter_of(denoiser_of(_as_pretrained(cell)), seeded(cell))
    for name, weight in model.unet.named_parameters():
        if not name.startswith((*parts, "conv_norm_out", "conv_out")):
            weight.register_hook(torch.zeros_like)  # frozen weights (requires_grad=False) crash torch 2.13's backward
    return masks_of(tuned(model, cell, cell.labelled, steps=cell.steps))


def without_ema(cell: Cell) -> Predict:
    """From the weights of the last round alone, not their running average."""
    denoiser = denoiser_of(_as_pretrained(cell))
    files = (cell.runs / "pretrain-federated" / "checkpoint").glob("generator-*.safetensors")
    file = max(files, key=lambda path: int(path.stem.rpartition("-")[2]))
    last = {name: value for name, value in load_arrays(file).items() if name.startswith("weights/")}
    local_round.load_arrays(denoiser, {name.removeprefix("weights/"): value.numpy() for name, value in last.items()})
    model = local_round.segmenter_of(denoiser, seeded(cell))
    return masks_of(tuned(model, cell, cell.labelled, steps=cell.steps))


def shorter(cell: Cell) -> Predict:
    """From a pre-training of fewer rounds."""
    return ptdr(replace(cell, row="ptdr-short"))


def door_alone(cell: Cell) -> Predict:
    """From nothing but the first convolution."""
    model, before = fresh(cell), denoiser_of(_as_pretrained(cell)).unet.state_dict()
    door = {name: value for name, value in before.items() if name.startswith("conv_in")}
    with torch.no_grad():
        model.unet.load_state_dict({**model.unet.state_dict(), **door})
    return masks_of(tuned(model, cell, cell.labelled, steps=cell.steps))


def _as_pretrained(cell: Cell, **changes: object) -> Cell:
    return replace(cell, row=OF, **changes)  # type: ignore[arg-type]


ABLATIONS: dict[str, Callable[[Cell], Predict]] = {
    "noise level 0.02": partial(with_settings, noise_level=0.02),
    "noise level 0.5": partial(with_settings, noise_level=0.5),
    "learning rate 1e-3": partial(with_rate, rate=1e-3),
    "learning rate 3e-3": partial(with_rate, rate=3e-3),
    "no warp": partial(with_settings, warp=False),
    "scratch without warp": partial(with_settings, row=scratch, warp=False),
    "decoder only": partial(some_layers, parts=("up_blocks",)),
    "encoder only": partial(some_layers, parts=("conv_in", "down_blocks")),
    "no EMA": without_ema,
    "3 rounds of pre-training": shorter,
    "first convolution only": door_alone,
}
