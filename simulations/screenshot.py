"""A page as a browser shows it, for those who write it: a picture, and no blank or cut one.

python -m simulations.screenshot runs/demo/report.html --out report.png
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from fedmedgen.errors import RunError

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTH, HEIGHTS = 1100, (6000, 12000, 24000)
MARGIN = 30  # pixels
SECONDS = 120
BLANK = 0.001  # share of pixels that differ from the ground, below which nothing was drawn


def screenshot(page: Path, out: Path, *, width: int = WIDTH) -> Path:
    """Draw the page with headless Chromium and cut the empty end off.

    **Raises** `RunError` if there is no browser, no page, nothing on it, or more than fits.
    """
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        raise RunError(f"expected one of {', '.join(BROWSERS)} to look at a page with; install one")
    if not page.is_file():
        raise RunError(f"expected a page at {page}; there is none")
    for height in HEIGHTS:
        picture = _drawn(browser, page, out, width, height)
        levels = np.asarray(picture, np.int16)
        drawn = (np.abs(levels - levels[-1, 0]).max(axis=2) > 8)[:, : width - 20]
        if drawn.mean() < BLANK:
            raise RunError(f"{page} shows nothing in a browser")
        last = int(np.flatnonzero(drawn.any(axis=1)).max())
        if last + MARGIN < picture.height:
            picture.crop((0, 0, picture.width, last + MARGIN)).save(out)
            return out
    out.unlink()
    raise RunError(f"expected a page of at most {HEIGHTS[-1]} pixels; {page} is taller at a width of {width}; try more")


def _drawn(browser: str, page: Path, out: Path, width: int, height: int) -> Image.Image:
    with tempfile.TemporaryDirectory() as profile:
        words = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
        words += [f"--screenshot={out.resolve()}", f"--window-size={width},{height}", page.resolve().as_uri()]
        subprocess.run(words, check=True, capture_output=True, timeout=SECONDS)
    return Image.open(out).convert("RGB")


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--width", type=int, default=WIDTH, help="pixels; 400 is a telephone")
    args = parser.parse_args(words)
    sys.stdout.write(f"{screenshot(args.page, args.out, width=args.width)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
