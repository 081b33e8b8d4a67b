"""Transforms on Ray Data: on all cores of this machine, or on a cluster.

Without an address a Ray of our own is started, which listens on this machine
only, keeps its files in one temporary folder, and ends with this process.
"""

from __future__ import annotations

import importlib
import logging
import os
import secrets
import shutil
import socket
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import psutil
import pyarrow as pa
from pydantic import Field

from penstock.engines.parcels import BUCKET_BYTES, PARCEL_BYTES, ParcelEngine, ParcelOptions, Work
from penstock.errors import EngineError, PenstockError
from penstock.registry import require
from penstock.sources.base import AnyOptions, Place

# Set before Ray is imported: it reports usage, and writes a token under the home
# folder, unless told otherwise. A token that is only in the environment is enough.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
}


class RayOptions(ParcelOptions):
    """Where Ray is."""

    address: Annotated[str | None, Place()] = Field(
        None, description="Of a running cluster; null is `RAY_ADDRESS`, or a Ray of its own."
    )
    num_cpus: Annotated[int | None, Place()] = Field(
        None, ge=1, description="Cores for a Ray of its own; null takes all."
    )


class RayEngine(ParcelEngine):
    """Runs transforms by Ray Data's ``map_batches`` and ``groupby``.

    Args:
        scratch: A folder that every worker sees; the caller deletes it.
        address: Of a running cluster; None starts Ray here, unless RAY_ADDRESS is set
            or this process has a Ray already.
        num_cpus: For a Ray of its own.
        parcel_bytes: How many bytes of rows to transform at once.
        bucket_bytes: How many bytes of rows to group at once.

    Raises:
        MissingExtra: ray is not installed.
        EngineError: Ray cannot be started or reached.
    """

    Options: ClassVar[AnyOptions] = RayOptions

    def __init__(
        self,
        scratch: Path,
        address: str | None = None,
        num_cpus: int | None = None,
        parcel_bytes: int = PARCEL_BYTES,
        bucket_bytes: int = BUCKET_BYTES,
    ) -> None:
        super().__init__(scratch, parcel_bytes, bucket_bytes)
        self._own = _Ray(address or os.environ.get("RAY_ADDRESS"), num_cpus)

    def close(self) -> None:
        """End the Ray that was started here; leave any other as it is."""
        self._own.stop()

    def _work(self, files: Sequence[Path], first: Work, then: Work | None) -> Iterator[pa.Table]:
        ray = self._own.ray
        names = [str(path) for path in files]
        data = ray.data.read_parquet(names, override_num_blocks=len(names))
        data = data.map_batches(first, batch_size=1, batch_format="pyarrow")
        if then is not None:
            grouped = data.groupby("bucket", num_partitions=min(64, max(1, first.num_buckets)))
            data = grouped.map_groups(then.__call__, batch_format="pyarrow")
        try:
            yield from data.iter_batches(batch_size=None, batch_format="pyarrow")
        except ray.exceptions.RayError as error:
            raise _plain(error) from error


class _Ray:
    """The Ray of this process: started here, or found.

    One that was started here ends with this object or with the process.
    """

    def __init__(self, address: str | None, num_cpus: int | None) -> None:
        os.environ |= {key: os.environ.get(key, value) for key, value in _ENVIRONMENT.items()}
        self.ray: Any = require("ray", "ray")
        require("ray.data", "ray")
        self._end: Callable[[], Any] = lambda: None
        if not self.ray.is_initialized():
            self._join(address, num_cpus)
        context = self.ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        # Parcels are few and large: sorting them is nothing, and Ray's newer
        # shuffles start actors that cost seconds each time.
        strategies = importlib.import_module("ray.data.context").ShuffleStrategy
        context.shuffle_strategy = strategies.SORT_SHUFFLE_PULL_BASED
        logging.getLogger("ray.data").setLevel(logging.ERROR)

    def stop(self) -> None:
        """Leave Ray; one that was started here ends."""
        self._end()

    def _join(self, address: str | None, num_cpus: int | None) -> None:
        own = address is None or address == "local"
        # Short: the sockets' paths in it may have 107 characters.
        folder = _folder() if own else None
        self._end = weakref.finalize(self, _leave, self.ray, folder)
        where: dict[str, Any] = {"address": address}
        if folder is not None:
            where = {"address": "local", "num_cpus": num_cpus, "include_dashboard": False}
            where["_temp_dir"] = str(folder)
            _give_token()
        try:
            if folder is None:
                _check_open(str(address))
            self.ray.init(logging_level=logging.ERROR, log_to_driver=False, **where)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            self.stop()
            raise EngineError(
                f"Ray at {where['address']} cannot be used: {str(error).splitlines()[0]}",
                "Check prepare.engine.address and RAY_ADDRESS, or leave both out to "
                "start Ray here.",
            ) from error


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


def _plain(error: Exception) -> PenstockError:
    """What a worker raised, in one line."""
    cause = getattr(error, "cause", None) or error
    lines = [line for line in str(cause).splitlines() if line.strip()]
    return EngineError(
        f"Ray could not finish a step: {type(cause).__name__}: {lines[-1] if lines else ''}",
        "See the logs of Ray, or run the same rows with `prepare.engine: local`.",
    )
