"""Programs that end when the process that started them does.

Run by its path before a program, this becomes that program: `python -I -S bound.py PARENT PROGRAM [word ...]`. The
kernel sends the signal when the thread that started the program is gone, so that thread must live as long as the
program does. Linux; elsewhere the program just runs.

**Source** prctl(2), PR_SET_PDEATHSIG: it survives execve.
"""

import ctypes
import os
import signal
import sys
import threading
import time

PR_SET_PDEATHSIG = 1
NOT_THERE = 127
ORPHANED = 75  # EX_TEMPFAIL
LOOKS_SECONDS, GRACE_SECONDS = 0.5, 10.0


def end_with_parent(grace: float = GRACE_SECONDS) -> None:
    """End this process once the one that started it is gone, `grace` seconds after it was missed.

    Flower's app processes watch for that, too, but from a thread that raises SIGINT: the signal wakes nobody, and a
    main thread that waits for threads that try a dead server again and again never sees it.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(LOOKS_SECONDS)
        time.sleep(grace)
        os._exit(ORPHANED)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


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
