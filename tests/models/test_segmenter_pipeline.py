"""The pipeline saved with a segmenter: it sees a picture of any depth and shape as the network did in training."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fedmedgen.data.pixels import resize, to_grey
from fedmedgen.federation import local_round
from fedmedgen.models import saving
from fedmedgen.models.segmenter import Segmenter
from fedmedgen.settings import DataSettings, GeneratorSettings, Settings

TINY = GeneratorSettings(unshuffle=1, channels=(8, 16), attention=(False, False), norm_groups=4)
FRAME = (16, 24)


def segmenter(fit: Any) -> Segmenter:
    data = DataSettings(size=FRAME, fit=fit, classes=("normal",), mask_classes=("background", "lung"))
    settings = Settings(generator=TINY, data=data)
    return local_round.segmenter_of(local_round.build_whole(settings), settings).eval()


def picture(kind: str) -> np.ndarray:
    """A bright ramp with a few pixels far brighter, as burnt-in letters are."""
    levels = np.linspace(0.2, 0.9, 40 * 44).reshape(40, 44)
    levels[2:4, 2:4] = 1.0
    deep = np.round(levels * 1500)
    deep[2:4, 2:4] = 4095
    if kind == "colour":
        return np.stack([np.round(levels * shade).astype(np.uint8) for shade in (250, 200, 150)], axis=2)
    return {
        "8 bits": np.round(levels * 255).astype(np.uint8),
        "12 bits in 16": deep.astype(np.uint16),
        "32 bits": deep.astype(np.int32),
        "floats": levels.astype(np.float32),
    }[kind]


@pytest.mark.parametrize("fit", ["pad", "squash"])
@pytest.mark.parametrize("kind", ["8 bits", "colour", "12 bits in 16", "32 bits", "floats"])
def test_a_picture_reaches_the_network_as_in_training_whatever_its_depth_and_shape(
    fit: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipes: list[Any] = []
    monkeypatch.setattr(saving, "_save", lambda pipe, *_: pipes.append(pipe))
    network = segmenter(fit)
    saving.save_segmenter(network, tmp_path, card={})
    seen: list[torch.Tensor] = []
    network.unet.conv_in.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    masks = pipes[0]([Image.fromarray(picture(kind))])
    with torch.no_grad():
        ours = network(torch.from_numpy(resize(to_grey(picture(kind)), FRAME, fit))[None])
    assert float(seen[1][:, 0].std()) > 0.1
    torch.testing.assert_close(seen[0], seen[1], atol=0.02, rtol=0)  # a colour's grey is rounded to 8 bits
    assert (masks == ours.argmax(dim=1).numpy()).mean() > 0.97


def test_a_flat_deep_picture_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipes: list[Any] = []
    monkeypatch.setattr(saving, "_save", lambda pipe, *_: pipes.append(pipe))
    saving.save_segmenter(segmenter("pad"), tmp_path, card={})
    assert pipes[0]([Image.fromarray(np.full((20, 20), 700, np.uint16))]).shape == (1, *FRAME)


def test_a_saved_segmenter_knows_how_pictures_were_fitted(tmp_path: Path) -> None:
    for fit in ("pad", "squash"):
        network = segmenter(fit)
        saving.save_segmenter(network, tmp_path / fit, card={})
        assert saving.load_segmenter(tmp_path / fit).config == network.config
        assert network.config.fit == fit
