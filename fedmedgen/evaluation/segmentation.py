"""What a set is worth for segmentation: a fixed small U-Net trained on it, tested on held-out real cases.

The recipe is the constants below. It was fixed on the training part of public sets; no test case decides anything.
Dice and HD95 are MONAI's. A case counts for a mask class if its true mask has that class.
"""

import logging
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from monai.losses import DiceCELoss
from monai.metrics import compute_dice, compute_hausdorff_distance
from monai.networks.nets import UNet
from torch import Tensor, nn
from torch.nn.functional import interpolate, one_hot

from fedmedgen.data.cases import Case, CaseSet, MaskArray
from fedmedgen.evaluation import recipe
from fedmedgen.seeds import seed_of

log = logging.getLogger(__name__)

WIDTHS = (16, 32, 64)
LARGEST_SIDE = 64
BATCH = 6
MOST_DISTANCES = 200  # cases, evenly spaced, whose HD95 is taken
LEARNING_RATE = 6e-3
WEIGHT_DECAY = 1e-4


def utility(train: CaseSet, test: CaseSet, *, seeds: int, steps: int, base_seed: int) -> dict[str, Any]:
    """Dice per mask class, HD95 in pixels and the share missed on `test` after training on `train`, over some seeds.

    `skipped` says why where either set can't carry a measurement.
    """
    train, test = (cases.with_cases([case for case in cases if case.mask is not None]) for cases in (train, test))
    if why := _unfit(train, test):
        return recipe.skipped(why)
    scores = []
    for number in range(seeds):
        network = fit(train, steps=steps, seed=seed_of(base_seed, "segmenter", number))
        scores.append(score(predict(network, test), test))
    names = train.mask_classes[1:]
    return {
        "dice": {name: _over_seeds([one["dice"][name] for one in scores]) for name in names},
        "dice_mean": _over_seeds([one["dice_mean"] for one in scores]),
        "hd95": _over_seeds([one["hd95"] for one in scores]),
        "hd95_missed": _over_seeds([one["hd95_missed"] for one in scores]),
        "n_train": len(train),
        "n_test": len(test),
        "seeds": seeds,
    }


def score(predictions: Sequence[MaskArray], cases: CaseSet) -> dict[str, Any]:
    """Mean Dice for each mask class, their mean, and HD95 in pixels; None where no case has the class.

    A mask of which nothing was found has no distance: such are left out of `hd95`, and `hd95_missed` is their share.

    **Shapes** each prediction is ``[H, W]``, as the case's mask
    """
    pairs = [(guess, case.mask) for guess, case in zip(predictions, cases, strict=True) if case.mask is not None]
    classes = len(cases.mask_classes)
    guesses = _layers(np.stack([guess for guess, _ in pairs]), classes)
    truths = _layers(np.stack([mask for _, mask in pairs]), classes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dice = compute_dice(guesses, truths, include_background=False, ignore_empty=True).numpy()
        some = slice(None, None, -(-len(pairs) // MOST_DISTANCES))
        far = compute_hausdorff_distance(guesses[some], truths[some], include_background=False, percentile=95).numpy()
    per_class = {name: _nanmean(dice[:, k]) for k, name in enumerate(cases.mask_classes[1:])}
    found = [value for value in per_class.values() if value is not None]
    return {
        "dice": per_class,
        "dice_mean": float(np.mean(found)) if found else None,
        "hd95": _nanmean(far[np.isfinite(far)]),
        "hd95_missed": _missed(guesses[some], truths[some]),
        "n_test": len(pairs),
    }


def fit(cases: CaseSet, *, steps: int, seed: int) -> nn.Module:
    """The U-Net after `steps` steps on cases that all have masks."""
    draw = np.random.default_rng(seed)
    x, y = _images(cases), _masks(cases)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _network(len(cases.mask_classes))
        criterion = DiceCELoss(softmax=True, to_onehot_y=True, include_background=False)
        optimiser = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=max(steps, 4))
        for _ in range(steps):
            rows = torch.from_numpy(draw.integers(0, len(x), BATCH))
            move = recipe.some_shift((x.shape[2], x.shape[3]), draw)
            images, masks = recipe.vary(recipe.shift(x[rows], *move), draw), recipe.shift(y[rows], *move)
            loss = criterion(network(images), masks)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return network.eval()


@torch.inference_mode()
def predict(network: nn.Module, cases: CaseSet) -> list[MaskArray]:
    """A mask ``[H, W]`` for each case, in the case's own size."""
    size = cases.cases[0].image.shape[1:]
    parts = [interpolate(network(part), size, mode="bilinear") for part in torch.split(_images(cases), 64)]
    return list(torch.cat(parts).argmax(1).to(torch.uint8).numpy())


def _network(num_masks: int) -> nn.Module:
    network: nn.Module = UNet(2, 1, num_masks, channels=WIDTHS, strides=(2, 2), num_res_units=2, norm="batch")
    return network


def _working_size(case: Case) -> tuple[int, int]:
    height, width = case.image.shape[1:]
    share = min(1.0, LARGEST_SIDE / max(height, width))
    rows, columns = (max(8, 8 * round(share * side / 8)) for side in (height, width))
    return rows, columns


def _images(cases: CaseSet) -> Tensor:
    size = _working_size(cases.cases[0])
    return interpolate(recipe.standardised(cases.images()), size, mode="bilinear", antialias=True)


def _masks(cases: CaseSet) -> Tensor:
    masks = torch.from_numpy(np.stack([case.mask for case in cases if case.mask is not None]))[:, None]
    return interpolate(masks, _working_size(cases.cases[0]), mode="nearest-exact")


def _layers(masks: MaskArray, classes: int) -> Tensor:
    return one_hot(torch.from_numpy(masks).long(), classes).movedim(-1, 1).float()


def _missed(guesses: Tensor, truths: Tensor) -> float | None:
    there, found = (layers[:, 1:].flatten(2).any(2) for layers in (truths, guesses))
    return float((there & ~found).sum() / there.sum()) if there.any() else None


def _nanmean(values: Any) -> float | None:
    good = values[np.isfinite(values)]
    return float(good.mean()) if good.size else None


def _over_seeds(values: Sequence[float | None]) -> dict[str, float] | None:
    return recipe.mean_sd([value for value in values if value is not None])


def _unfit(train: CaseSet, test: CaseSet) -> str:
    if len(train.mask_classes) < 2 or train.mask_classes != test.mask_classes:
        return "no masks" if not train.mask_classes or not test.mask_classes else "the mask classes differ"
    for name, cases in (("training", train), ("test", test)):
        if len(cases) < recipe.FEWEST_CASES:
            return f"needs {recipe.FEWEST_CASES} {name} cases with a mask; got {len(cases)}"
    return ""
