"""Transforms on Ray Data: on all cores of this machine, or on a cluster."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from penstock.engines.parcels import BUCKET_BYTES, PARCEL_BYTES, ParcelEngine, ParcelOptions, Work
from penstock.errors import EngineError, PenstockError
from penstock.ray_process import JoinedRay
from penstock.registry import require
from penstock.sources.base import AnyOptions, Place

_HINT = "Check prepare.engine.address and RAY_ADDRESS, or leave both out to start Ray here."


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
        self._own = JoinedRay(address, num_cpus, EngineError, _HINT)
        require("ray.data", "ray")
        _set_up(self._own.ray)

    def close(self) -> None:
        """End the Ray that was started here; leave any other as it is."""
        self._own.stop()

    def _work(self, files: Sequence[Path], first: Work, then: Work | None) -> Iterator[pa.Table]:
        ray = self._own.ray
        names = [str(path) for path in files]
        # Ray's own reader first starts an actor for each core, to look at the files.
        data = ray.data.from_items(names, override_num_blocks=len(names))
        data = data.map_batches(_OnFiles(first), batch_size=1, batch_format="pyarrow")
        if then is not None:
            grouped = data.groupby("bucket", num_partitions=min(64, max(1, first.num_buckets)))
            data = grouped.map_groups(then.__call__, batch_format="pyarrow")
        try:
            yield from data.iter_batches(batch_size=None, batch_format="pyarrow")
        except ray.exceptions.RayError as error:
            raise _plain(error) from error


@dataclass(frozen=True)
class _OnFiles:
    """Work on the parcels of files, one parcel at a time."""

    work: Work

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        for name in batch["item"].to_pylist():
            with pq.ParquetFile(name) as file:
                for group in range(file.num_row_groups):
                    yield self.work(file.read_row_group(group))


def _set_up(ray: Any) -> None:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # Parcels are few and large: sorting them is nothing, and Ray's newer
    # shuffles start actors that cost seconds each time.
    strategies = importlib.import_module("ray.data.context").ShuffleStrategy
    context.shuffle_strategy = strategies.SORT_SHUFFLE_PULL_BASED
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def _plain(error: Exception) -> PenstockError:
    """What a worker raised, in one line."""
    cause = getattr(error, "cause", None) or error
    lines = [line for line in str(cause).splitlines() if line.strip()]
    return EngineError(
        f"Ray could not finish a step: {type(cause).__name__}: {lines[-1] if lines else ''}",
        "See the logs of Ray, or run the same rows with `prepare.engine: local`.",
    )
