"""Processes that a launcher starts: they end when it does, and say nothing on its screen."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

_STOP_S = 30.0


def run_group(command: Sequence[str], settings: Mapping[str, str], log: Path) -> int:
    """Run a command and all that it starts to its end.

    Args:
        command: What to run.
        settings: Set in its environment.
        log: Where what it prints goes.

    Returns:
        Its exit status.
    """
    source = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH", "")]))
    with log.open("ab") as printed:
        process = subprocess.Popen(  # noqa: S603  # of the launcher's making
            command,
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=subprocess.STDOUT,
            # Another environment's Python has to find this very package.
            env={**os.environ, **settings, "PYTHONPATH": paths},
            start_new_session=True,
        )
        try:
            return process.wait()
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End what is left of a process group."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(_STOP_S)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
