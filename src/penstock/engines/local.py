"""Transforms on this machine, in one process, in bounded memory.

Each pass reads its rows from disk and writes its result to disk, a few MiB at a
time. To bring the rows of one key together, rows are first divided by key into
files small enough for memory; to put what is left back in ingest order, those
files, each in order itself, are merged.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from penstock.engines.base import Mapped, Rows, in_ingest_order
from penstock.engines.spool import BATCH_BYTES, Spool, recut
from penstock.transforms.base import KEY, REMOVED_SCHEMA, KeyedTransform, RowTransform

ORDINAL = "_ordinal"  # int64: the row's place in ingest order

# What is grouped in memory at once; a transform may need several times this.
BUCKET_BYTES = 64 << 20
# Each bucket is an open file while rows are divided.
MAX_BUCKETS = 256
# Small, since merging holds a batch of every bucket at a time.
MERGE_BATCH_BYTES = 1 << 20


class LocalEngine:
    """Runs transforms in this process.

    Args:
        scratch: A folder for rows between steps; the caller deletes it.
        bucket_bytes: How many bytes of rows to group at once.
        batch_bytes: How many bytes of rows to transform at once.
    """

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
        num_buckets = min(MAX_BUCKETS, -(-keyed.num_bytes // self._bucket_bytes))
        buckets = [keyed] if num_buckets <= 1 else self._divide(keyed, num_buckets)
        chosen = [self._choose(bucket, transform) for bucket in buckets]
        return Mapped(
            self._merge([kept for kept, _ in chosen], keyed.num_rows),
            self._merge([removed for _, removed in chosen], keyed.num_rows),
        )

    def _keyed(self, rows: Rows, transform: KeyedTransform) -> Spool:
        """The rows with their place in ingest order and their key."""
        start = 0
        with self._spool(_with_key(rows.schema.empty_table(), 0, transform).schema) as keyed:
            for table in recut(rows.batches(), self._batch_bytes):
                keyed.write(_with_key(table, start, transform))
                start += table.num_rows
        return keyed

    def _divide(self, keyed: Spool, num_buckets: int) -> list[Spool]:
        """Rows of one key into one bucket, in ingest order within each."""
        buckets = [self._spool(keyed.schema) for _ in range(num_buckets)]
        with ExitStack() as stack:
            for bucket in buckets:
                stack.enter_context(bucket)
            for table in keyed.batches():
                for bucket, part in zip(buckets, _parts(table, num_buckets), strict=True):
                    bucket.write(part)
        keyed.discard()
        return buckets

    def _choose(self, bucket: Spool, transform: KeyedTransform) -> tuple[Spool, Spool]:
        """Let the transform choose in one bucket; what it says still carries the ordinal."""
        rows = pa.concat_tables([bucket.schema.empty_table(), *bucket.batches()])
        bucket.discard()
        outcome = transform.keep(rows)
        kept = outcome.kept.drop_columns(KEY)
        removed, indices = in_ingest_order(outcome.removed, rows)
        removed = removed.append_column(ORDINAL, rows[ORDINAL].take(indices))
        return self._whole(kept), self._whole(removed)

    def _whole(self, table: pa.Table) -> Spool:
        with self._spool(table.schema) as spool:
            spool.write(table, batch_bytes=MERGE_BATCH_BYTES)
        return spool

    def _merge(self, parts: list[Spool], num_ordinals: int) -> Spool:
        """Parts, each in ingest order -> one in ingest order, without the ordinal."""
        schema = parts[0].schema
        schema = schema.remove(schema.get_field_index(ORDINAL))
        num_bytes = sum(part.num_bytes for part in parts)
        window = max(1, num_ordinals * self._batch_bytes // max(num_bytes, 1))
        cursors = [_Cursor(part) for part in parts]
        with self._spool(schema) as merged:
            for end in range(window, num_ordinals + window, window):
                table = pa.concat_tables([piece for c in cursors for piece in c.below(end)])
                merged.write(table.sort_by(ORDINAL).drop_columns(ORDINAL))
        for part in parts:
            part.discard()
        return merged

    def _spool(self, schema: pa.Schema) -> Spool:
        return Spool(self._scratch / f"{next(self._numbers):06d}.arrow", schema)


class _Cursor:
    """Reads a spool forward, a range of ordinals at a time."""

    def __init__(self, spool: Spool) -> None:
        self._batches = spool.batches()
        self._rest = spool.schema.empty_table()

    def below(self, end: int) -> Iterator[pa.Table]:
        """The rows not yet read whose ordinal is below ``end``."""
        while True:
            num_below = int(np.searchsorted(self._rest[ORDINAL].to_numpy(), end))
            yield self._rest.slice(0, num_below)
            self._rest = self._rest.slice(num_below)
            if self._rest.num_rows:
                return
            following = next(self._batches, None)
            if following is None:
                return
            self._rest = following


def _with_key(table: pa.Table, start: int, transform: KeyedTransform) -> pa.Table:
    ordinals = pa.array(np.arange(start, start + table.num_rows, dtype=np.int64))
    key = transform.key(table)
    return table.append_column(ORDINAL, ordinals).append_column(KEY, key)


def _parts(table: pa.Table, num_buckets: int) -> Iterator[pa.Table]:
    """The rows of each bucket. Any hash will do: the result does not depend on it."""
    key = table[KEY].combine_chunks()
    if pa.types.is_fixed_size_binary(key.type):
        key = key.cast(pa.binary())
    bucket = (pl.Series(key).hash() % num_buckets).to_numpy()
    order = np.argsort(bucket, kind="stable")
    ends = np.cumsum(np.bincount(bucket, minlength=num_buckets))
    grouped = table.take(pa.array(order))
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        yield grouped.slice(start, end - start)
