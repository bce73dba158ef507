"""Named seed streams: one study seed and a name give an independent, repeatable stream.

Never used for privacy noise, Poisson coins or rounding at a real site: see `privacy.randomness`.
"""

import hashlib


def seed_of(seed: int, *names: str | int) -> int:
    """A 63-bit seed for the stream called `names` of the study seed `seed`."""
    text = "/".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
