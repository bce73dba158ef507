"""A process that is killed at a chosen moment, and the marks it left on a pipe: a witness outside the ledger."""

import logging
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

Mark = Callable[[str], None]
Victim = Callable[[Mark], None]

FAR = 14  # marks: about one round and a half
LONGEST_S = 0.012
IDLE = "idle"  # the last mark of one that has outlived its work


@dataclass(frozen=True)
class Moment:
    """Kill so long after so many marks."""

    marks: int
    seconds: float

    @classmethod
    def drawn(cls, coins: random.Random, *, most_marks: int = FAR) -> "Moment":
        return cls(coins.randint(0, most_marks), LONGEST_S * coins.random() ** 2)


def killed(victim: Victim, moment: Moment) -> list[str]:
    """Fork, run the victim, SIGKILL it at its moment; all marks it left, the last being what it was doing."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        _live(victim, write)
    os.close(write)
    marks = b""
    while marks.count(b"\n") < moment.marks and not marks.endswith(f"{IDLE}\n".encode()):
        marks += os.read(read, 1 << 16)
    time.sleep(moment.seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while piece := os.read(read, 1 << 16):
        marks += piece
    os.close(read)
    return marks.decode().splitlines()


def _live(victim: Victim, pipe: int) -> None:
    """The child's life; it never returns, and waits for its death when its work is done."""
    plain = os.write

    def mark(words: str) -> None:
        plain(pipe, words.replace("\n", " ").encode() + b"\n")

    try:
        torch.set_num_threads(1)  # a fork has none of its parent's other threads, and would wait for them
        logging.disable(logging.CRITICAL)
        mark("starting")
        victim(mark)
    except BaseException as fault:
        mark(f"raised {type(fault).__name__}: {fault}")
    finally:
        mark(IDLE)
        while True:
            signal.pause()
