"""Does the synthetic set repeat training images more often than chance would?"""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.metrics import pairwise_distances

from fedmedgen.data.cases import CaseSet, FloatArray
from fedmedgen.models.features import extract

MOST = 1000  # synthetic images that are looked at
PAIRS = 12  # that are drawn
SHUFFLES = 10_000
TAIL = 0.001  # of the shuffles on either side: a gate asks often, and a set that repeats nobody should pass
SCALE = 3
GAP = 2  # pixels


def copies(synthetic: CaseSet, members: CaseSet, holdout: CaseSet, *, seed: int) -> dict[str, Any]:
    """The share of synthetic images whose nearest real image took part, beside what patients held out give.

    As many of either side are compared with. `holdout_baseline` is the share were it chance who took part, over
    shuffles of who did, and `chance` holds 99.8 % of them: a set that draws few images over and over spreads it widely.

    **Source** The holdout as a baseline: van den Burg and Williams 2021; Meehan et al. 2020.
    """
    n = min(len(members), len(holdout))
    if n < 4 or not len(synthetic):
        return {"skipped": f"needs 4 members, 4 held out and a synthetic set; got {len(members)}, {len(holdout)}"}
    draw = np.random.default_rng(seed)
    some, others = (_some(cases, n, draw) for cases in (members, holdout))
    synthetic = _some(synthetic, MOST, draw)
    found: dict[str, Any] = {}
    for name, features in (("features", extract), ("pixels", _pixels)):
        made, own, kept = (features(cases.images()) for cases in (synthetic, some, others))
        nearest = pairwise_distances(made, np.concatenate([own, kept])).argmin(axis=1)
        shuffled = [float((draw.permutation(2 * n)[nearest] < n).mean()) for _ in range(SHUFFLES)]
        found[name] = {
            "nearer_to_train": float((nearest < n).mean()),
            "holdout_baseline": float(np.mean(shuffled)),
            "chance": [float(np.quantile(shuffled, TAIL)), float(np.quantile(shuffled, 1 - TAIL))],
        }
    return {"n": n, "synthetic": len(synthetic), **found, **found["features"]}


def draw_nearest(synthetic: CaseSet, members: CaseSet, path: Path) -> None:
    """A picture of the synthetic images nearest to a training image, each above it: for the site's eyes alone."""
    if not (len(synthetic) and len(members)):
        return
    synthetic = _some(synthetic, MOST, np.random.default_rng(0))
    distances = pairwise_distances(_pixels(synthetic.images()), _pixels(members.images()))
    nearest = distances.argmin(axis=1)
    rows = [np.argsort(distances.min(axis=1))[:PAIRS]]
    made, own = synthetic.images()[rows[0], 0], members.images()[nearest[rows[0]], 0]
    gap = np.ones((made.shape[1], GAP), np.float32)
    strips = [np.concatenate([np.concatenate([image, gap], axis=1) for image in side], axis=1) for side in (made, own)]
    levels = np.rint((np.clip(np.concatenate(strips), -1, 1) + 1) * 127.5).astype(np.uint8)
    picture = Image.fromarray(levels, "L")
    picture.resize((picture.width * SCALE, picture.height * SCALE), Image.Resampling.NEAREST).save(path)


def _pixels(images: FloatArray) -> FloatArray:
    return images.reshape(len(images), -1)


def _some(cases: CaseSet, count: int, draw: np.random.Generator) -> CaseSet:
    return cases.with_cases([cases.cases[place] for place in draw.permutation(len(cases))[:count]])
