"""What every engine does to bring rows of one key together, and to put them back in order.

Rows are divided by key into buckets small enough for memory; in each bucket the
transform chooses; and what is left, each bucket in order itself, is merged.

However many buckets there are, all rows of one key are in one of them. A bucket that
is too large is taken a piece at a time, if the first row of a group is all that its
transform needs to know of the pieces before.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from penstock.engines.base import in_ingest_order
from penstock.engines.spool import Spool, recut
from penstock.transforms.base import KEY, KeyedTransform

ORDINAL = "_ordinal"  # int64: the row's place in ingest order

# Each bucket is an open file, or a task, while rows are divided.
MAX_BUCKETS = 256
# Small, since merging holds a batch of every bucket at a time.
MERGE_BATCH_BYTES = 1 << 20


class Part(Protocol):
    """Rows in ingest order, with their ordinals; to be merged with others."""

    @property
    def schema(self) -> pa.Schema:
        """Of every batch."""
        ...

    @property
    def num_bytes(self) -> int:
        """About how many in memory."""
        ...

    def batches(self) -> Iterator[pa.Table]:
        """The rows, about ``MERGE_BATCH_BYTES`` at a time."""
        ...

    def discard(self) -> None:
        """Free the place they take."""
        ...


def num_buckets(num_bytes: int, bucket_bytes: int) -> int:
    """How many buckets of about ``bucket_bytes`` so many bytes make; at least one."""
    return max(1, min(MAX_BUCKETS, -(-num_bytes // bucket_bytes)))


def with_key(table: pa.Table, start: int, transform: KeyedTransform) -> pa.Table:
    """The rows with their places in ingest order, from ``start`` on, and their keys."""
    ordinals = pa.array(np.arange(start, start + table.num_rows, dtype=np.int64))
    key = transform.key(table)
    return table.append_column(ORDINAL, ordinals).append_column(KEY, key)


def divided(table: pa.Table, count: int) -> Iterator[pa.Table]:
    """The rows of each of ``count`` buckets, all rows of a key in one."""
    bucket = _bucket_of(table[KEY].combine_chunks(), count)
    order = np.argsort(bucket, kind="stable")
    ends = np.cumsum(np.bincount(bucket, minlength=count))
    grouped = table.take(pa.array(order))
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        yield grouped.slice(start, end - start)


def chosen(
    bucket: Iterable[pa.Table], schema: pa.Schema, transform: KeyedTransform, piece_bytes: int
) -> Iterator[tuple[pa.Table, pa.Table]]:
    """Let ``transform`` choose in one bucket.

    Args:
        bucket: Its rows in ingest order.
        schema: Of each table.
        transform: Sees all of them at once, unless it is ``by_first``.
        piece_bytes: How much such a transform sees at once.

    Yields:
        Kept and removed rows with their ordinals; once at least, for the schemas.
    """
    none = schema.empty_table()
    if not getattr(transform, "by_first", False):
        yield _chosen(pa.concat_tables([none, *bucket]), transform)
        return
    yield _chosen(none, transform)
    known, rows, num_known = none, none, 0
    for piece in recut(bucket, piece_bytes):
        known = pa.concat_tables([known, _firsts(rows, num_known)])
        theirs = known.filter(pc.is_in(known[KEY], piece[KEY].combine_chunks()))
        rows, num_known = pa.concat_tables([theirs, piece]), theirs.num_rows
        yield _chosen(rows, transform, num_known)


def merge(parts: Sequence[Part], num_ordinals: int, batch_bytes: int, into: Spool) -> None:
    """Write parts, each in ingest order, as one in ingest order, without the ordinal."""
    num_bytes = sum(part.num_bytes for part in parts)
    window = max(1, num_ordinals * batch_bytes // max(num_bytes, 1))
    cursors = [_Cursor(part) for part in parts]
    with into:
        for end in range(window, num_ordinals + window, window):
            table = pa.concat_tables([piece for c in cursors for piece in c.below(end)])
            into.write(table.sort_by(ORDINAL).drop_columns(ORDINAL))
    for part in parts:
        part.discard()


def without_ordinal(schema: pa.Schema) -> pa.Schema:
    """The schema that ``merge`` writes."""
    return schema.remove(schema.get_field_index(ORDINAL))


def _chosen(
    rows: pa.Table, transform: KeyedTransform, num_known: int = 0
) -> tuple[pa.Table, pa.Table]:
    """What becomes of the rows, but for the first ``num_known``: that is settled already."""
    outcome = transform.keep(rows)
    removed, indices = in_ingest_order(outcome.removed, rows)
    removed = removed.append_column(ORDINAL, rows[ORDINAL].take(indices))
    kept = outcome.kept.drop_columns(KEY)
    if not num_known:
        return kept, removed
    start = rows[ORDINAL][num_known]
    return (
        kept.filter(pc.greater_equal(kept[ORDINAL], start)),
        removed.filter(pc.greater_equal(removed[ORDINAL], start)),
    )


def _firsts(rows: pa.Table, num_known: int) -> pa.Table:
    """The first row of each key, but for the keys of the first ``num_known`` rows."""
    codes = rows[KEY].combine_chunks().dictionary_encode("encode").indices
    places = np.sort(np.unique(codes.to_numpy(), return_index=True)[1])
    return rows.take(pa.array(places[places >= num_known], pa.int64()))


class _Cursor:
    """Reads a part forward, a range of ordinals at a time."""

    def __init__(self, part: Part) -> None:
        self._batches = part.batches()
        self._rest = part.schema.empty_table()

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


def _bucket_of(key: pa.Array, count: int) -> npt.NDArray[np.int64]:
    """Each key's bucket, the same in every process and on every host."""
    if pa.types.is_int64(key.type) and not key.null_count:
        # Of hashes and numbers alike the low bits differ most.
        numbers: npt.NDArray[np.int64] = key.to_numpy()
        return (numbers.view(np.uint64) % np.uint64(count)).astype(np.int64)
    if not (pa.types.is_binary(key.type) or pa.types.is_fixed_size_binary(key.type)):
        key = key.cast(pa.large_string()).cast(pa.large_binary())
    crcs = [0 if value is None else zlib.crc32(value) for value in key.to_pylist()]
    return np.array(crcs, np.int64) % count
