"""Who holds what: names of processes, and whether they still live."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import psutil

_PERSON: ContextVar[str] = ContextVar("person", default="")
_LONGEST_PERSON = 80  # characters; an actor's column holds 200


def this_process() -> str:
    """A name for this process that no later process on this host can have."""
    process = psutil.Process()
    return f"{socket.gethostname()}:{process.pid}:{birth(process)}"


def birth(process: psutil.Process) -> str:
    """When a process began, the same for whoever asks.

    On Linux in clock ticks since the machine started: psutil adds the time of
    that start, which moves when the clock is set, and a living process would
    then look like another one.
    """
    try:
        stat = Path(f"/proc/{process.pid}/stat").read_text()
    except OSError:
        return f"{process.create_time():.2f}"
    return stat.rpartition(")")[2].split()[19]


def is_dead(holder: str) -> bool:
    """Whether the holder is known to be gone: a process of this host that ended."""
    host, pid, started = holder.rsplit(":", 2)
    if host != socket.gethostname():
        return False
    try:
        process = psutil.Process(int(pid))
        return birth(process) != started or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def process_of(holder: str) -> str:
    """The process part of a claim's holder; the rest tells its threads apart."""
    return holder.rpartition("/")[0]


def actor() -> str:
    """Who moves a pointer, for the audit log."""
    user = os.environ.get("USER") or os.environ.get("LOGNAME") or f"uid {os.getuid()}"
    process = f"{user}@{socket.gethostname()}"
    person = _PERSON.get()
    return f"{person} by {process}" if person else process


@contextmanager
def acting_as(person: str) -> Iterator[None]:
    """While the block runs, what is written down was done by this person through us."""
    token = _PERSON.set(person[:_LONGEST_PERSON])
    try:
        yield
    finally:
        _PERSON.reset(token)
