"""Runs a command that must not outlive the process that asked for it.

``python -I child.py COMMAND...`` passes the command's output and exit code on.
When its own standard input ends, however its parent ended, it ends the command
and everything that has started.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading

_PATIENCE_S = 10


def main(command: list[str]) -> None:
    """Run the command until it ends, or until nobody wants it any more."""
    try:
        process = subprocess.Popen(  # noqa: S603  # what the recipe names
            command, stdin=subprocess.DEVNULL, start_new_session=True
        )
    except OSError as error:
        print(f"{command[0]} cannot be started: {error.strerror}", file=sys.stderr, flush=True)
        os._exit(127)
    threading.Thread(target=_follow, args=(process,), daemon=True).start()
    # Without a buffer: its lock would be held here when the other thread ends us.
    while os.read(0, 1):
        pass
    _end(process, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_PATIENCE_S)
    _end(process, signal.SIGKILL)
    os._exit(1)


def _follow(process: subprocess.Popen[bytes]) -> None:
    code = process.wait()
    _end(process, signal.SIGKILL)  # what it has left behind
    os._exit(code if code >= 0 else 128 - code)


def _end(process: subprocess.Popen[bytes], how: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, how)


if __name__ == "__main__":
    main(sys.argv[1:])
