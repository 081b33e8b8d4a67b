"""Processes that must not outlive us: started under ``child.py``, gone with us, and quotable."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

_CHILD = Path(__file__).with_name("child.py")
_PATIENCE_S = 15
_QUOTED_CHARS = 1_000


@dataclass(frozen=True)
class Running:
    """A command under way.

    Attributes:
        process: ``child.py``, which runs it.
        log: Where what it says on its standard error goes; can be read.
    """

    process: subprocess.Popen[str]
    log: IO[bytes]

    def last_words(self, num_chars: int = _QUOTED_CHARS) -> str:
        """The end of what it has said, to show in an error."""
        size = os.fstat(self.log.fileno()).st_size
        # The place to write at is shared with the child: only this reading leaves it alone.
        tail = os.pread(self.log.fileno(), 4 * num_chars, max(0, size - 4 * num_chars))
        return tail.decode(errors="replace").strip()[-num_chars:] or "it said nothing"

    def end(self) -> None:
        """End it, if it has not ended, and wait for that."""
        end_child(self.process, _PATIENCE_S)


def start(
    command: Sequence[str],
    log: IO[bytes],
    answers: bool = False,
    environment: Mapping[str, str] | None = None,
) -> Running:
    """Start a command; it ends when told, or when this process does, however that ends.

    Args:
        command: Program and arguments.
        log: What it says goes there; open for reading too.
        answers: Its standard output is read here; otherwise it joins the log.
        environment: Its variables; None is ours.
    """
    process = subprocess.Popen(  # noqa: S603  # what the recipe names
        [sys.executable, "-I", str(_CHILD), *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE if answers else log,
        stderr=log,
        text=True,
        env=environment,
        start_new_session=True,  # Ctrl-C is for us; it ends with our end of the pipe
    )
    return Running(process, log)


@contextmanager
def running(command: Sequence[str], answers: bool = False) -> Iterator[Running]:
    """Run a command until the block ends.

    Args:
        command: Program and arguments.
        answers: Its standard output is read here; otherwise it joins the log.
    """
    with tempfile.TemporaryFile() as log:
        child = start(command, log, answers)
        try:
            yield child
        finally:
            child.end()


def free_port() -> int:
    """A port of this host on which nothing listens just now."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


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
