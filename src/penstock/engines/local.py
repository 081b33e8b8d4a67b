"""Transforms on this machine, in one process, in bounded memory.

Each pass reads its rows from disk and writes its result to disk, a few MiB at a
time. To bring the rows of one key together, rows are first divided by key into
files small enough for memory; to put what is left back in ingest order, those
files, each in order itself, are merged.
"""

from __future__ import annotations

from contextlib import ExitStack
from itertools import chain, count
from pathlib import Path
from typing import Annotated, ClassVar

import pyarrow as pa
from pydantic import Field

from penstock.engines.base import Mapped, Rows, in_ingest_order
from penstock.engines.groups import (
    MERGE_BATCH_BYTES,
    chosen,
    divided,
    merge,
    num_buckets,
    with_key,
    without_ordinal,
)
from penstock.engines.spool import BATCH_BYTES, Spool, recut
from penstock.sources.base import AnyOptions, Options, Place
from penstock.transforms.base import REMOVED_SCHEMA, KeyedTransform, RowTransform

# What is grouped in memory at once; a transform may need several times this.
BUCKET_BYTES = 64 << 20


class LocalOptions(Options):
    """How much this process does at once."""

    bucket_bytes: Annotated[int, Place()] = Field(
        BUCKET_BYTES, ge=1, description="Bytes of rows grouped at once."
    )
    batch_bytes: Annotated[int, Place()] = Field(
        BATCH_BYTES, ge=1, description="Bytes of rows transformed at once."
    )


class LocalEngine:
    """Runs transforms in this process.

    Args:
        scratch: A folder for rows between steps; the caller deletes it.
        bucket_bytes: How many bytes of rows to group at once.
        batch_bytes: How many bytes of rows to transform at once.
    """

    Options: ClassVar[AnyOptions] = LocalOptions

    def __init__(
        self, scratch: Path, bucket_bytes: int = BUCKET_BYTES, batch_bytes: int = BATCH_BYTES
    ) -> None:
        scratch.mkdir(parents=True, exist_ok=True)
        self._scratch = scratch
        self._bucket_bytes = bucket_bytes
        self._batch_bytes = batch_bytes
        self._numbers = count()

    def map_batches(self, rows: Rows, transform: RowTransform) -> Mapped:
        """Transform the rows some at a time."""
        transform.open()
        schema = transform(rows.schema.empty_table()).kept.schema
        with self._spool(schema) as kept, self._spool(REMOVED_SCHEMA) as removed:
            for table in recut(rows.batches(), self._batch_bytes):
                outcome = transform(table)
                kept.write(outcome.kept)
                removed.write(in_ingest_order(outcome.removed, table)[0])
        return Mapped(kept, removed)

    def map_groups(self, rows: Rows, transform: KeyedTransform) -> Mapped:
        """Bring the rows of each key together and let the transform choose."""
        transform.open()
        keyed = self._keyed(rows, transform)
        buckets = self._divide(keyed, num_buckets(keyed.num_bytes, self._bucket_bytes))
        parts = [self._choose(bucket, transform) for bucket in buckets]
        return Mapped(
            self._merge([kept for kept, _ in parts], keyed.num_rows),
            self._merge([removed for _, removed in parts], keyed.num_rows),
        )

    def close(self) -> None:
        """There is nothing to stop."""

    def _keyed(self, rows: Rows, transform: KeyedTransform) -> Spool:
        """The rows with their place in ingest order and their key."""
        start = 0
        with self._spool(with_key(rows.schema.empty_table(), 0, transform).schema) as keyed:
            for table in recut(rows.batches(), self._batch_bytes):
                keyed.write(with_key(table, start, transform))
                start += table.num_rows
        return keyed

    def _divide(self, keyed: Spool, count: int) -> list[Spool]:
        """Rows of one key into one bucket, in ingest order within each."""
        if count == 1:
            return [keyed]
        buckets = [self._spool(keyed.schema) for _ in range(count)]
        with ExitStack() as stack:
            for bucket in buckets:
                stack.enter_context(bucket)
            for table in keyed.batches():
                for bucket, part in zip(buckets, divided(table, count), strict=True):
                    bucket.write(part)
        keyed.discard()
        return buckets

    def _choose(self, bucket: Spool, transform: KeyedTransform) -> tuple[Spool, Spool]:
        """Let the transform choose in one bucket."""
        pieces = chosen(bucket.batches(), bucket.schema, transform, self._bucket_bytes)
        first = next(pieces)
        kept, removed = (self._spool(table.schema) for table in first)
        with kept, removed:
            for stay, gone in chain([first], pieces):
                kept.write(stay, batch_bytes=MERGE_BATCH_BYTES)
                removed.write(gone, batch_bytes=MERGE_BATCH_BYTES)
        bucket.discard()
        return kept, removed

    def _merge(self, parts: list[Spool], num_ordinals: int) -> Spool:
        merged = self._spool(without_ordinal(parts[0].schema))
        merge(parts, num_ordinals, self._batch_bytes, merged)
        return merged

    def _spool(self, schema: pa.Schema) -> Spool:
        return Spool(self._scratch / f"{next(self._numbers):06d}.arrow", schema)
