"""Random numbers that privacy rests on: Poisson coins and Gaussian noise from a cryptographic stream."""

import hashlib
import os
from typing import TYPE_CHECKING, NoReturn

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Generator, Tensor

_forks = [0]  # how many forks lie between this process and the first
os.register_at_fork(after_in_child=lambda: _forks.__setitem__(0, _forks[0] + 1))

CHUNK = 1 << 16  # normals made at a time: they stay in the cache


class Stream:
    """An AES-256-CTR keystream read as uniform and normal numbers.

    **Guarantee** A system stream is keyed by the operating system's entropy, never repeats after a fork, and can't be
    copied or written to a file, so no noise is ever drawn twice.
    """

    def __init__(self, key: bytes, *, seeded: bool) -> None:
        self.is_seeded = seeded
        self._process = _process()
        self._start(key)

    @classmethod
    def system(cls) -> "Stream":
        """The stream for real data."""
        return cls(os.urandom(32), seeded=False)

    @classmethod
    def seeded(cls, seed: int, *names: str | int) -> "Stream":
        """A repeatable stream, for simulations only: whoever knows the seed can subtract the noise."""
        text = "/".join(["fedmedgen privacy stream", str(seed), *map(str, names)])
        return cls(hashlib.sha256(text.encode()).digest(), seeded=True)

    def uniform(self, count: int) -> NDArray[np.float64]:
        """`count` numbers on the midpoints of 2^52 equal cells, so never 0 and never 1."""
        words = np.frombuffer(self._bytes(8 * count), dtype=np.uint64)
        return ((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52

    def normal_float64(self, count: int) -> NDArray[np.float64]:
        """`count` standard normal numbers by Box and Muller's transform in double precision."""
        out = np.empty(count + count % 2, dtype=np.float64)
        for start in range(0, out.size, CHUNK):
            part = out[start : start + CHUNK]
            half = part.size // 2
            uniforms = self.uniform(2 * half)
            radius = np.sqrt(-2.0 * np.log(uniforms[:half]))
            angle = 2.0 * np.pi * uniforms[half:]
            np.multiply(radius, np.cos(angle), out=part[:half])
            np.multiply(radius, np.sin(angle), out=part[half:])
        return out[:count]

    def normal(self, count: int) -> "Tensor":
        """`count` standard normal numbers as float32 `[count]`."""
        import torch

        return torch.from_numpy(self.normal_float64(count).astype(np.float32))

    def torch_generator(self) -> "Generator":
        """A generator for augmentations and diffusion noise, which carry no privacy claim."""
        import torch

        generator = torch.Generator()
        generator.manual_seed(int.from_bytes(self._bytes(8), "little") >> 1)
        return generator

    def _start(self, key: bytes) -> None:
        self._keystream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()

    def _bytes(self, count: int) -> bytes:
        if not self.is_seeded and _process() != self._process:
            self._process = _process()
            self._start(os.urandom(32))
        return self._keystream.update(bytes(count))

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Stream can't be copied or stored: its noise would be drawn twice; make a new one")


def _process() -> tuple[int, int]:
    """What tells a process from the one it was forked from, even where both have one number."""
    return os.getpid(), _forks[0]
