"""How a process is ended by the one that started it, also when that one is killed."""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
from contextlib import suppress

_PR_SET_PDEATHSIG = 1  # prctl(2)


def die_with_parent() -> None:
    """Ask Linux to end this process when its parent ends, even by kill -9."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def end_child(process: subprocess.Popen[str], patience_s: float) -> None:
    """Close a child's pipes, by which it knows that it is over, and wait for it.

    Args:
        process: The child.
        patience_s: How long it may take; then it is killed.
    """
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(BrokenPipeError):  # what was still to be said interests nobody
                pipe.close()
    try:
        process.wait(patience_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
