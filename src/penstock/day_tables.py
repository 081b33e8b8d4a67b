"""Delta tables of what happens: many writers append, and rows are kept apart by day.

Every row belongs to a response, and a response's id says when it was given (UUID
version 7). Rows lie in the folder of that day, and each file says from which to which
millisecond its responses are, so that one of a hundred thousand is found in one or
two files. Rows carry the version that brought them, as in every table of a project;
a day that is old enough goes as a whole.
"""

from __future__ import annotations

import bisect
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import date, datetime, timedelta
from itertools import chain, groupby
from typing import Any, ClassVar
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc

from penstock.artifacts import store_errors
from penstock.tables import ROW, VERSION, Position, Table, schema_of, write_file

DAY = "day"  # date32: of the response, in UTC; what the table is partitioned by
ID_MS = "id_ms"  # int64: when the response got its id, Unix milliseconds; null without one
RESPONSE_ID = "response_id"  # string
_SPANS = (VERSION, ROW, ID_MS)

# Tries of one commit, with a pause between: of twenty writers that begin at once, all get through.
_TRIES = 60
_MAX_PAUSE_S = 0.3
# Files that no version names any more are kept as long as a reader of one may take.
_UNNAMED_HOURS = 7 * 24


class DayTable(Table):
    """An append-only Delta table with the columns ``day``, ``id_ms`` and ``response_id``."""

    partitions: ClassVar = [DAY]
    # Statistics of other columns would put what users wrote into the table's log.
    properties: ClassVar = {"delta.dataSkippingStatsColumns": ",".join(_SPANS)}

    def append(
        self,
        position: Position,
        schema: pa.Schema,
        batches: Callable[[int], Iterable[pa.RecordBatch]],
    ) -> None:
        """Append rows beside other writers; once, however often it is tried.

        Args:
            position: Of this writer's own stream; skipped when the table has it.
            schema: Of all batches.
            batches: Called with the version the commit will have; each of one day.

        Raises:
            StoreError: The disk refuses, or others kept getting in between.
        """
        for attempt in range(_TRIES):
            have = self.position(position.stream)
            if have >= position.value or self._try_append(position, schema, batches, have):
                return
            pause_s = min(0.01 * 2**attempt, _MAX_PAUSE_S)
            time.sleep(random.uniform(0, pause_s))  # noqa: S311
        raise self._contended()

    def find(
        self,
        response_ids: Sequence[str],
        day: date,
        upto: int | None = None,
        columns: Sequence[str] | None = None,
    ) -> pa.Table:
        """All rows of some responses of one day, in the order they came.

        Only files are opened that have the day and may have one of the milliseconds.

        Args:
            response_ids: Of that day.
            day: In UTC.
            upto: The last version that counts; None is the newest.
            columns: Of the table, to read no others; None is all.
        """
        times_ms = sorted(map(id_ms, response_ids))
        handle = self._handle()
        if handle is None or not times_ms:
            return pa.table({})
        schema = _schema_of(handle, columns)
        inside = _without_day(schema)
        wanted = [
            (ID_MS, ">=", times_ms[0]),
            (ID_MS, "<=", times_ms[-1]),
            (RESPONSE_ID, "in", list(response_ids)),
        ]
        found = [
            self._read(handle, name, inside, wanted) for name in _files_of(handle, day, times_ms)
        ]
        table = pa.concat_tables([inside.empty_table(), *found])
        if upto is not None:
            table = table.filter(pc.less_equal(table[VERSION], upto))
        days = pa.repeat(pa.scalar(day, pa.date32()), table.num_rows)
        table = table.add_column(schema.get_field_index(DAY), schema.field(DAY), days)
        return table.sort_by([(VERSION, "ascending"), (ROW, "ascending")])

    def newest(self, limit: int, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """The rows that came last, newest first; only the files are opened that hold them.

        Args:
            limit: At most so many.
            columns: Of the table, to read no others; None is all.
        """
        handle = self._handle()
        if handle is None:
            return []
        schema = _without_day(_schema_of(handle, columns))
        actions = pa.table(handle.get_add_actions(flatten=True)).to_pylist()
        last = schema.empty_table()
        for action in sorted(actions, key=lambda one: -(one[f"max.{VERSION}"] or 0)):
            full = last.num_rows == limit
            if full and last[VERSION][-1].as_py() > (action[f"max.{VERSION}"] or 0):
                break
            more = self._read(handle, unquote(action["path"]), schema)
            # Of a large file no more becomes Python than is asked for.
            both = pa.concat_tables([last, more])
            last = both.sort_by([(VERSION, "descending"), (ROW, "descending")]).slice(0, limit)
        rows: list[dict[str, Any]] = last.to_pylist()
        return rows

    def since(self, at: datetime, time_column: str, columns: Sequence[str]) -> pa.Table:
        """Some columns of all rows with a time at or after a moment, whether answered or not.

        Only files are opened that were written since.

        Args:
            at: The moment, with a time zone.
            time_column: A timestamp that rows have when they are written.
            columns: Of the table, without ``day``.
        """
        handle = self._handle()
        if handle is None:
            return pa.table({})
        schema = _without_day(_schema_of(handle, columns))
        later = [(time_column, ">=", at)]
        found = [self._read(handle, name, schema, later) for name in _files_since(handle, at)]
        return pa.concat_tables([schema.empty_table(), *found])

    def between(self, start_ms: int, end_ms: int, columns: Sequence[str]) -> pa.Table:
        """Some columns of all rows whose responses got their ids in a span of time.

        Only files are opened that may have one.

        Args:
            start_ms: The first millisecond.
            end_ms: The first one after the span.
            columns: Of the table, without ``day``.
        """
        handle = self._handle()
        if handle is None or start_ms >= end_ms:
            return pa.table({})
        told = schema_of(handle)
        schema = pa.schema([told.field(name) for name in columns])
        span = [(ID_MS, ">=", start_ms), (ID_MS, "<", end_ms)]
        names = _files_between(handle, start_ms, end_ms)
        found = [self._read(handle, name, schema, span) for name in names]
        return pa.concat_tables([schema.empty_table(), *found])

    def compact(self, day: date) -> None:
        """Make few files of a day's many; gives way when another process does the same."""
        from deltalake.exceptions import CommitFailedError

        handle = self._handle()
        if handle is not None:
            with suppress(CommitFailedError), store_errors(self.folder.url):
                handle.optimize.compact([(DAY, "=", day.isoformat())])

    def expire(self, before: date) -> None:
        """Drop all days before this one; their files go once nobody can be reading them."""
        from deltalake.exceptions import CommitFailedError

        handle = self._handle()
        if handle is None:
            return
        with suppress(CommitFailedError), store_errors(self.folder.url):
            if _has_days_before(handle, before):
                handle.delete(f"{DAY} < '{before.isoformat()}'")
            handle.vacuum(_UNNAMED_HOURS, dry_run=False)

    def standing(self) -> tuple[str, int] | None:
        """The table's own id, and the last version that brought rows; None before the first.

        Another table in the same place has another id. Versions that only rearranged
        or dropped rows do not count.
        """
        handle = self._handle()
        if handle is None:
            return None
        actions = pa.table(handle.get_add_actions(flatten=True))
        last = pc.max(actions[f"max.{VERSION}"]).as_py() if actions.num_rows else None
        return None if last is None else (str(handle.metadata().id), int(last))

    def _write_files(self, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> list[Any]:
        """A file for each day; batches of one day follow each other."""
        inside = schema.remove(schema.get_field_index(DAY))
        actions: list[Any] = []
        for day, some in groupby(batches, key=lambda batch: batch[DAY][0].as_py()):
            rest: Iterator[pa.RecordBatch] = iter(some)
            while (batch := next(rest, None)) is not None:
                pieces = chain([batch], rest)
                told = {DAY: day.isoformat()}
                actions.append(write_file(self.folder, inside, pieces, _SPANS, told))
        return actions

    def _read(
        self, handle: Any, name: str, schema: pa.Schema, filters: list[Any] | None = None
    ) -> pa.Table:
        """Some columns of a file; those that are newer than it are null."""
        import pyarrow.parquet as pq

        with store_errors(self.folder.url):
            return pq.read_table(
                self.folder.opened(name),
                schema=_without_day(schema_of(handle)),
                columns=schema.names,
                filters=filters,
                partitioning=None,
            )


def id_ms(response_id: str) -> int:
    """When a response got its id, Unix milliseconds; the id is known to be one."""
    return int(response_id[-32:-20], 16)


def day_of(at_ms: int) -> date:
    """The day of a moment, in UTC."""
    return (datetime(1970, 1, 1) + timedelta(milliseconds=at_ms)).date()


def _schema_of(handle: Any, columns: Sequence[str] | None) -> pa.Schema:
    """The table's columns, or some of them with those that say where a row is."""
    told = schema_of(handle)
    if columns is None:
        return told
    wanted = {*columns, DAY, RESPONSE_ID, VERSION, ROW}
    return pa.schema([field for field in told if field.name in wanted])


def _without_day(schema: pa.Schema) -> pa.Schema:
    """What is in the files: the day is in their folder's name."""
    return schema.remove(schema.get_field_index(DAY))


def _files_of(handle: Any, day: date, times_ms: Sequence[int]) -> list[str]:
    """Files of a day that may hold a response of one of these moments."""
    actions = pa.table(handle.get_add_actions(flatten=True))
    actions = actions.filter(pc.equal(actions[f"partition.{DAY}"], day)).to_pylist()
    low, high = f"min.{ID_MS}", f"max.{ID_MS}"
    names = []
    for action in actions:
        if action.get(low) is None:
            continue  # rows of requests that got no answer
        at = bisect.bisect_left(times_ms, action[low])
        if at < len(times_ms) and times_ms[at] <= action[high]:
            names.append(unquote(action["path"]))
    return names


def _files_between(handle: Any, start_ms: int, end_ms: int) -> list[str]:
    """Files that may hold a response of a span of time, in a fixed order."""
    actions = pa.table(handle.get_add_actions(flatten=True)).to_pylist()
    low, high = f"min.{ID_MS}", f"max.{ID_MS}"
    return sorted(
        unquote(action["path"])
        for action in actions
        if action.get(low) is not None and action[low] < end_ms and action[high] >= start_ms
    )


def _files_since(handle: Any, at: datetime) -> list[str]:
    """Files that were written at or after a moment, in a fixed order."""
    actions = pa.table(handle.get_add_actions(flatten=True)).to_pylist()
    since_ms = int(1000 * at.timestamp())
    return sorted(unquote(one["path"]) for one in actions if one["modification_time"] >= since_ms)


def _has_days_before(handle: Any, before: date) -> bool:
    actions = pa.table(handle.get_add_actions(flatten=True))
    return bool(pc.any(pc.less(actions[f"partition.{DAY}"], before)).as_py())
