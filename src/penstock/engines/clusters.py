"""Clustered transforms, composed of an engine's two passes.

Sketches are made by ``map_batches``. Rows that are the same meet their first by
``map_groups``, and so do, of the others, those with a bucket in common. A bucket
of n rows gives n - 1 pairs, each row with the bucket's first, never n squared.
The pairs are judged here in ingest order, and the transform then acts on the
rows by ``map_batches`` again.

In memory at once: 20 bytes for each row, 16 for each pair, and the sketches of
rows that later ones are compared with.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from penstock.engines.base import Engine, Mapped, Rows, StoredRows, StreamedRows
from penstock.sources.base import AnyOptions, Options
from penstock.transforms.base import (
    ALSO,
    BUCKETS,
    EQUAL,
    KEY,
    LIKE,
    REMOVED_SCHEMA,
    ROW_ID,
    SIMILARITY,
    SKETCH,
    ClusteredTransform,
    Found,
    Outcome,
)

_PLACE = "place"  # int64: a row's place in ingest order
_FIRST = "first"  # int64: the place of the first row in its bucket
_BUCKET = "bucket"

# Pairs are freed of repeats whenever so many have come together.
_PAIRS_AT_ONCE = 1 << 23

_Places = npt.NDArray[np.int64]
_Pairs = npt.NDArray[np.int64]  # shape (n, 2): a row's place, and that of one it met


def run_clustered(engine: Engine, rows: Rows, transform: ClusteredTransform) -> Mapped:
    """Run a clustered transform; it reads ``rows`` twice."""
    sketches = _kept(engine.map_batches(rows, _Sketching(transform)))
    equal = _meet(engine, sketches, _equal_items)
    is_repeat = np.zeros(sketches.num_rows, np.bool_)
    is_repeat[equal[:, 0]] = True
    pairs = _meet(engine, sketches, lambda start, table: _bucket_items(start, table, is_repeat))
    found = _judged(transform, sketches, pairs)
    sketches.discard()
    found = _with_repeats(found, equal)
    return engine.map_batches(_Annotated(rows, found), _Acting(transform))


def _kept(mapped: Mapped) -> StoredRows:
    """What a pass of our own kept; it removes nothing."""
    mapped.removed.discard()
    return mapped.kept


def _judged(transform: ClusteredTransform, sketches: StoredRows, pairs: _Pairs) -> Found:
    """Let the judge compare the rows that met, in ingest order."""
    judge = transform.judge(sketches.num_rows)
    met = np.unique(pairs[:, 1])
    for start, table in _placed(sketches.batches()):
        end = start + table.num_rows
        low, high = np.searchsorted(pairs[:, 0], [start, end])
        theirs = met[slice(*np.searchsorted(met, [start, end]))]
        places = np.union1d(pairs[low:high, 0], theirs)
        cuts = np.searchsorted(pairs[low:high, 0], places[1:])
        if len(places):
            candidates = np.split(pairs[low:high, 1], cuts)
            chosen = table[SKETCH].take(pa.array(places - start))
            judge.compare(places, chosen, candidates, np.isin(places, theirs))
    return judge.found()


def _with_repeats(found: Found, equal: _Pairs) -> Found:
    """A row that is the same as an earlier one shares its fate."""
    repeats, firsts = equal[:, 0], equal[:, 1]
    found.like[repeats] = found.like[firsts]
    found.similarity[repeats] = found.similarity[firsts]
    found.also[repeats] = found.also[firsts]
    return found


def _meet(engine: Engine, sketches: Rows, items: _Items) -> _Pairs:
    """Every row that has an earlier one in its bucket, with that bucket's first; sorted."""

    def read() -> Iterator[pa.Table]:
        for start, table in _placed(sketches.batches()):
            yield items(start, table)

    schema = items(0, sketches.schema.empty_table()).schema
    later = _kept(engine.map_groups(StreamedRows(schema, read), _FirstOfBucket()))
    waiting: list[_Pairs] = [np.empty((0, 2), np.int64)]
    for table in later.batches():
        waiting.append(np.column_stack([table[_PLACE].to_numpy(), table[_FIRST].to_numpy()]))
        if sum(map(len, waiting[1:])) > _PAIRS_AT_ONCE:
            waiting = [_sorted(waiting)]
    later.discard()
    return _sorted(waiting)


def _sorted(parts: list[_Pairs]) -> _Pairs:
    table = pl.DataFrame(np.concatenate(parts), schema=[_PLACE, _FIRST]).unique()
    return table.sort(_PLACE, _FIRST).to_numpy()


class _Items(Protocol):
    def __call__(self, start: int, table: pa.Table) -> pa.Table:
        """The rows' places and buckets, for rows that begin at ``start``."""
        ...


def _equal_items(start: int, table: pa.Table) -> pa.Table:
    return _items(np.arange(start, start + table.num_rows), table[EQUAL])


def _bucket_items(start: int, table: pa.Table, is_repeat: npt.NDArray[np.bool_]) -> pa.Table:
    is_new = ~is_repeat[start : start + table.num_rows]
    lists = table[BUCKETS].filter(pa.array(is_new))
    places = np.arange(start, start + table.num_rows)[is_new]
    lengths = [chunk.value_lengths().to_numpy() for chunk in lists.chunks]
    counts = np.concatenate([np.empty(0, np.int64), *lengths]).astype(np.int64)
    values = pa.chunked_array([c.flatten() for c in lists.chunks], lists.type.value_type)
    return _items(np.repeat(places, counts), values)


def _items(places: _Places, buckets: pa.ChunkedArray) -> pa.Table:
    columns = {_PLACE: places, _FIRST: np.zeros(len(places), np.int64), _BUCKET: buckets}
    table = pa.table(columns)
    return table.filter(table[_BUCKET].is_valid()) if buckets.null_count else table


def _placed(batches: Iterable[pa.Table]) -> Iterator[tuple[int, pa.Table]]:
    start = 0
    for table in batches:
        yield start, table
        start += table.num_rows


class _FirstOfBucket:
    """Keeps every row of a bucket but the first, and writes that one beside it."""

    name: ClassVar[str] = "first of bucket"
    revision: ClassVar[int] = 1
    Options: ClassVar[AnyOptions] = Options
    by_first: ClassVar[bool] = True

    def open(self) -> None:
        """There is nothing to load."""

    def key(self, rows: pa.Table) -> pa.Array:
        return rows[_BUCKET].combine_chunks()

    def keep(self, rows: pa.Table) -> Outcome:
        places = pl.DataFrame({_PLACE: pl.Series(rows[_PLACE]), KEY: pl.Series(rows[KEY])})
        first = places.select(pl.col(_PLACE).first().over(KEY)).to_series().to_numpy()
        later = rows.set_column(rows.schema.get_field_index(_FIRST), _FIRST, pa.array(first))
        return Outcome(
            later.filter(pa.array(first != rows[_PLACE].to_numpy())), REMOVED_SCHEMA.empty_table()
        )


@dataclass(frozen=True)
class _Sketching:
    """A clustered transform's first look, as a row transform."""

    name: ClassVar[str] = "sketch"
    revision: ClassVar[int] = 1
    Options: ClassVar[AnyOptions] = Options
    transform: ClusteredTransform

    def open(self) -> None:
        self.transform.open()

    def __call__(self, rows: pa.Table) -> Outcome:
        sketches = self.transform.sketch(rows).add_column(0, ROW_ID, rows[ROW_ID])
        return Outcome(sketches, REMOVED_SCHEMA.empty_table())


@dataclass(frozen=True)
class _Acting:
    """A clustered transform's last look, as a row transform."""

    name: ClassVar[str] = "act"
    revision: ClassVar[int] = 1
    Options: ClassVar[AnyOptions] = Options
    transform: ClusteredTransform

    def open(self) -> None:
        self.transform.open()

    def __call__(self, rows: pa.Table) -> Outcome:
        return self.transform.act(rows)


class _Annotated:
    """Rows with what the judge found out about each."""

    def __init__(self, rows: Rows, found: Found) -> None:
        self._rows = rows
        self._found = found
        self.schema = rows.schema
        for name, type_ in ((LIKE, "string"), (SIMILARITY, "float64"), (ALSO, "string")):
            self.schema = self.schema.append(pa.field(name, type_))
        places = np.arange(len(found.like))
        named = [found.like[found.like != places], found.also[found.also >= 0]]
        self._named = np.unique(np.concatenate(named))

    def batches(self) -> Iterator[pa.Table]:
        # A row is like one before it, whose id has been read by then.
        ids = np.zeros(len(self._named), "S32")
        for start, table in _placed(self._rows.batches()):
            low, high = np.searchsorted(self._named, [start, start + table.num_rows])
            theirs = table[ROW_ID].take(pa.array(self._named[low:high] - start))
            ids[low:high] = theirs.to_pylist()
            yield self._annotated(table, slice(start, start + table.num_rows), ids)

    def _annotated(self, table: pa.Table, part: slice, ids: npt.NDArray[np.bytes_]) -> pa.Table:
        places = np.arange(part.start, part.stop)
        like, also = self._found.like[part], self._found.also[part]
        table = table.append_column(LIKE, self._ids(like, like != places, ids))
        table = table.append_column(SIMILARITY, pa.array(self._found.similarity[part], "float64"))
        return table.append_column(ALSO, self._ids(also, also >= 0, ids))

    def _ids(
        self, places: _Places, given: npt.NDArray[np.bool_], ids: npt.NDArray[np.bytes_]
    ) -> pa.Array:
        if not len(ids):
            return pa.nulls(len(places), "string")
        known = ids[np.minimum(np.searchsorted(self._named, places), len(ids) - 1)]
        return pa.array(known.astype(str), "string", mask=~given)
