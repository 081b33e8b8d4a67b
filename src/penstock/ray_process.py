"""The Ray of this process: started here, or found.

Without an address a Ray of our own is started, which listens on this machine
only, keeps its files in one temporary folder, and ends with this process.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import socket
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from penstock.errors import PenstockError
from penstock.registry import require

# Set before Ray is imported: it reports usage, and writes a token under the home
# folder, unless told otherwise. A token that is only in the environment is enough.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    # SIGTERM is whose process it is: it would print a stack and abort.
    "RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1",
    # A thread of Ray's that outlives its session would otherwise start another one.
    "RAY_ENABLE_AUTO_CONNECT": "0",
    # Ray gives way to everything else on the machine; what it does here is waited for.
    "RAY_worker_niceness": "0",
}


class JoinedRay:
    """A process has one Ray; one that was started here ends with this object or with the process.

    Args:
        address: Of a running cluster; None starts Ray here, unless RAY_ADDRESS is set
            or this process has a Ray already.
        num_cpus: For a Ray of its own; None takes all.
        error: Makes the error when there is none, from what happened and what to do.
        hint: What to do then.

    Attributes:
        ray: The library.
        is_own: It was started here.

    Raises:
        MissingExtra: ray is not installed.
        PenstockError: Ray cannot be started or reached.
    """

    def __init__(
        self,
        address: str | None,
        num_cpus: int | None,
        error: Callable[[str, str], PenstockError],
        hint: str,
    ) -> None:
        os.environ |= {key: os.environ.get(key, value) for key, value in _ENVIRONMENT.items()}
        self.ray: Any = require("ray", "ray")
        self.is_own = False
        self._end: Callable[[], Any] = lambda: None
        if self.ray.is_initialized():
            return
        where = address or os.environ.get("RAY_ADDRESS") or "local"
        try:
            self._join(where, num_cpus)
        except (ConnectionError, RuntimeError, ValueError, OSError) as cause:
            self.stop()
            line = str(cause).splitlines()[0]
            raise error(f"Ray at {where} cannot be used: {line}", hint) from cause

    def stop(self) -> None:
        """Leave Ray; one that was started here ends."""
        self._end()

    def _join(self, address: str, num_cpus: int | None) -> None:
        # Short: the sockets' paths in it may have 107 characters.
        folder = _folder() if address == "local" else None
        self._end = weakref.finalize(self, _leave, self.ray, folder)
        where: dict[str, Any] = {"address": address}
        if folder is not None:
            where |= {"num_cpus": num_cpus, "include_dashboard": False, "_temp_dir": str(folder)}
            _give_token()
        else:
            _check_open(address)
        self.ray.init(logging_level=logging.ERROR, log_to_driver=False, **where)
        self.is_own = folder is not None


def _folder() -> Path:
    """A folder for a Ray of our own; those of processes that were killed go."""
    for path in Path(tempfile.gettempdir()).glob("pen-ray-*-*"):
        pid = path.name.split("-")[2]
        if pid.isdecimal() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(path, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"pen-ray-{os.getpid()}-"))


def _check_open(address: str) -> None:
    """Ray itself tries for minutes; whether anybody is there is known at once.

    Raises:
        OSError: Nobody is.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _leave(ray: Any, folder: Path | None) -> None:
    if ray.is_initialized():
        ray.shutdown()
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


def _give_token() -> None:
    """Let a Ray of our own have a token that no file holds, unless there is one."""
    if not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"} & set(os.environ):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
