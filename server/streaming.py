"""Replies one at a time: pulled in the order they were asked for, added up, and let go.

However many sites there are, the server holds one reply and one sum. The order makes the sum the same on every backend.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid
from numpy.typing import NDArray

POLL_SECONDS = 1.0


class OneAtATime:
    """A grid whose replies come one at a time; all else is the grid's own.

    `again` sees each reply first, and may name a message to send in its place, whose reply is then the site's.
    """

    def __init__(self, grid: Grid, again: Callable[[Message], Message | None] = lambda _: None) -> None:
        self._grid, self._again = grid, again

    def __getattr__(self, name: str) -> object:
        return getattr(self._grid, name)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Replies in the order of the messages; those that aren't there in time are left out."""
        end = np.inf if timeout is None else time.monotonic() + timeout
        return self._replies(self._pushed(list(messages)), end)

    def _pushed(self, messages: list[Message]) -> list[str]:
        return [name for name in self._grid.push_messages(messages) if name]

    def _replies(self, names: list[str], end: float) -> Iterator[Message]:
        for name in names:
            while not (found := list(self._grid.pull_messages([name]))) and time.monotonic() < end:
                time.sleep(POLL_SECONDS)
            while found:
                repeated = self._again(found[-1])
                if repeated is None:
                    yield found.pop()
                else:
                    found.pop()
                    yield from self._replies(self._pushed([repeated]), end)


class WeightedMean:
    """A weighted mean of models that come one after the other: one copy in memory, in single precision as Flower's."""

    def __init__(self, expected: float) -> None:
        self.expected, self.weight = expected, 0.0
        self._sums: dict[str, NDArray[np.float32]] = {}

    def add(self, arrays: Mapping[str, NDArray[np.float32]], weight: float) -> None:
        share = weight / self.expected
        for name in arrays:
            part = arrays[name] * np.float32(share)
            if name in self._sums:
                self._sums[name] += part
            else:
                self._sums[name] = part
        self.weight += weight

    def take(self) -> dict[str, NDArray[np.float32]]:
        """The mean of what was added; the sums are let go. Where all came that were expected, no rescaling."""
        sums, self._sums = self._sums, {}
        if self.weight != self.expected:
            for value in sums.values():
                value *= np.float32(self.expected / self.weight)
        return sums
