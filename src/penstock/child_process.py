"""How a process that listens on its standard input is ended by the one that started it."""

from __future__ import annotations

import subprocess
from contextlib import suppress


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
