"""What a set is worth for classification: a fixed small network trained on it, tested on held-out real cases.

The recipe is the constants below. It was fixed on phantoms and lungs; no test case decides anything: no early stopping,
no choice among checkpoints.
"""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate
from torchmetrics.functional.classification import multiclass_calibration_error

from fedmedgen.data.cases import CaseSet
from fedmedgen.evaluation import recipe
from fedmedgen.seeds import seed_of

log = logging.getLogger(__name__)

WIDTHS = (16, 32, 64)
LARGEST_SIDE = 48
SMALL_SIDE = 32  # up to it the first layer keeps the picture's size
POOLED = 3
BATCH = 64
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 1e-3
DROPOUT = 0.2
CALIBRATION_BINS = 15
LABEL_SMOOTHING = 0.05
MEASURES = ("auc", "accuracy", "ece", "brier")
Built = TypeVar("Built", bound=nn.Module)


def utility(train: CaseSet, test: CaseSet, *, seeds: int, steps: int, base_seed: int) -> dict[str, Any]:
    """AUC (macro one-vs-rest), accuracy, ECE, Brier and recall per class on `test` after training on `train`.

    Mean and sd over some seeds. Training draws the classes evenly, so where they are uneven in the test, part of the
    calibration error is that. `skipped` says why where either set can't carry a measurement.
    """
    train = train.with_cases([case for case in train if case.label is not None])
    test = test.with_cases([case for case in test if case.label is not None])
    if why := _unfit(train, test):
        return recipe.skipped(why)
    x, y = _tensors(train)
    seen, truth = _tensors(test)
    scores = []
    for number in range(seeds):
        build = partial(_network, len(train.classes), max(x.shape[2:]))
        network = fit(x, y, build=build, steps=steps, seed=seed_of(base_seed, "classifier", number))
        scores.append(score(predict(network, seen), truth, len(train.classes)))
    result: dict[str, Any] = {name: recipe.mean_sd([one[name] for one in scores]) for name in MEASURES}
    recalls = {name: recipe.mean_sd([one["recall"][k] for one in scores]) for k, name in enumerate(train.classes)}
    commonest = float(np.bincount(truth).max() / len(truth))
    return result | {
        "recall": recalls,
        "n_train": len(train),
        "n_test": len(test),
        "seeds": seeds,
        "commonest_share": commonest,
    }


def fit(x: Tensor, y: NDArray[np.int64], *, build: Callable[[], Built], steps: int, seed: int) -> Built:
    """The network that `build` makes, after `steps` steps on standardised images ``[B, 1, H, W]``."""
    draw = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build()
        optimiser = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=max(steps, 4))
        chances, labels = recipe.balanced(y), torch.from_numpy(y)
        for _ in range(steps):
            rows = torch.from_numpy(draw.choice(len(y), BATCH, p=chances))
            batch = recipe.vary(recipe.shift(x[rows], *recipe.some_shift((x.shape[2], x.shape[3]), draw)), draw)
            loss = cross_entropy(network(batch), labels[rows], label_smoothing=LABEL_SMOOTHING)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
    return network.eval()


@torch.inference_mode()
def predict(network: nn.Module, x: Tensor) -> NDArray[np.float64]:
    """Probabilities ``[B, classes]``."""
    return np.concatenate([network(part).double().softmax(1).numpy() for part in torch.split(x, 256)])


def score(chances: NDArray[np.float64], truth: NDArray[np.int64], num_classes: int) -> dict[str, Any]:
    """AUC, accuracy, calibration and recall of probabilities ``[B, classes]``; nan for a class that `truth` lacks."""
    guess = chances.argmax(1)
    areas, recalls = [], []
    for label in range(num_classes):
        here = truth == label
        recalls.append(float((guess[here] == label).mean()) if here.any() else float("nan"))
        if here.any() and not here.all():
            areas.append(float(roc_auc_score(here, chances[:, label])))
    return {
        "auc": float(np.mean(areas)),
        "accuracy": float((guess == truth).mean()),
        "recall": recalls,
        "ece": calibration_error(chances, truth),
        "brier": brier(chances, truth),
    }


def calibration_error(chances: NDArray[np.float64], truth: NDArray[np.int64]) -> float:
    """Expected calibration error of the likeliest class, in 15 bins of equal width: 0 where confidence is accuracy."""
    given, labels = torch.from_numpy(chances), torch.from_numpy(truth)
    classes = chances.shape[1]
    return float(multiclass_calibration_error(given, labels, classes, n_bins=CALIBRATION_BINS, norm="l1"))


def brier(chances: NDArray[np.float64], truth: NDArray[np.int64]) -> float:
    """Half the squared distance from the truth, summed over classes: 0 is best, 1 worst, 1/4 a coin of two classes."""
    return float(((chances - np.eye(chances.shape[1])[truth]) ** 2).sum(1).mean() / 2)


def _network(num_classes: int, side: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    before = 1
    for level, width in enumerate(WIDTHS):
        stride = 1 if level == 0 and side <= SMALL_SIDE else 2
        layers += [nn.Conv2d(before, width, 3, stride=stride, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        before = width
    layers += [nn.Conv2d(before, before, 3, padding=1), nn.BatchNorm2d(before), nn.ReLU()]
    numbers = POOLED**2 * before
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(POOLED), nn.Flatten(), nn.Dropout(DROPOUT), nn.Linear(numbers, num_classes)
    )


def _tensors(cases: CaseSet) -> tuple[Tensor, NDArray[np.int64]]:
    x = recipe.standardised(cases.images())
    if max(x.shape[2:]) > LARGEST_SIDE:
        share = LARGEST_SIDE / max(x.shape[2:])
        size = (round(share * x.shape[2]), round(share * x.shape[3]))
        x = interpolate(x, size, mode="bilinear", antialias=True)
    return x, np.array([case.label for case in cases], np.int64)


def _unfit(train: CaseSet, test: CaseSet) -> str:
    if train.classes != test.classes:
        return f"the classes differ: {', '.join(train.classes)} in training, {', '.join(test.classes)} in the test"
    for name, cases in (("training", train), ("test", test)):
        if len(cases) < recipe.FEWEST_CASES:
            return f"needs {recipe.FEWEST_CASES} {name} cases with a label; got {len(cases)}"
        if len({case.label for case in cases}) < 2:
            return f"all {name} cases are of one class"
    return ""
