"""Becomes another program, which ends when the process that started it does. Linux; elsewhere it just runs.

Run by its path before the program: `python -I -S bound.py PARENT PROGRAM [word ...]`. The kernel sends the signal when
the thread that started the program is gone, so that thread must live as long as the program does.

**Source** prctl(2), PR_SET_PDEATHSIG: it survives execve.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
NOT_THERE = 127


def main(parent: int, words: list[str]) -> None:
    """Take the program's place, unless the parent has died before the kernel was told."""
    tell = getattr(ctypes.CDLL(None), "prctl", None)
    if tell is not None:
        tell(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            raise SystemExit(f"process {parent}, which started {words[0]}, is gone")
    try:
        os.execvp(words[0], words)
    except OSError as error:
        sys.stderr.write(f"{words[0]} can't be started: {error}\n")
        raise SystemExit(NOT_THERE) from error


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
