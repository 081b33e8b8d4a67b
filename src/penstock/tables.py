"""Delta tables that take each piece of input exactly once.

A transaction entry (stream, position) is committed together with the rows, and
a position that is already there is skipped. Delta itself does not refuse a
replayed entry, so two things make this safe: the position is read from the same
handle that commits, and commits are never rebased (``max_commit_retries=0``):
if another writer got in between, the commit fails and the caller looks again.
Not rebasing also means that a commit's version is known beforehand, so every
row can carry the version that brought it.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path, PurePath
from typing import Any, ClassVar

import pyarrow as pa

from penstock.artifacts import store_errors
from penstock.errors import StoreError
from penstock.folders import Folder, LocalFolder

VERSION = "_version"  # int64: the version that brought the row
ROW = "_row"  # int64: its place among the rows of that version
BATCH_ROWS = 16_384
# A table property that lets Delta drop the entries that make ingest exactly-once.
_FORGETS = "delta.setTransactionRetentionDuration"
FILE_BYTES = 256 << 20  # of rows in memory, before Parquet makes them smaller


@dataclass(frozen=True)
class Position:
    """How far a stream has come."""

    stream: str
    value: int


class Table:
    """One append-only Delta table.

    Args:
        folder: Where it is.
        key: What summaries call it; by default its name.

    Attributes:
        partitions: Columns that rows are kept apart by; None for the tables of stages.
        properties: Delta's, of a table that is made.
    """

    partitions: ClassVar[list[str] | None] = None
    properties: ClassVar[Mapping[str, str | None] | None] = None

    def __init__(self, folder: Folder | Path, key: str = "") -> None:
        self.folder = LocalFolder(folder) if isinstance(folder, Path) else folder
        self.key = key or self.name

    @property
    def name(self) -> str:
        """The table's own name, without where it is."""
        return self.folder.name

    def version(self) -> int:
        """The newest version, -1 before the first."""
        handle = self._handle()
        return -1 if handle is None else int(handle.version())

    def position(self, stream: str) -> int:
        """The committed position of ``stream``, -1 before the first."""
        return _committed(self._handle(), stream)

    def positions(self) -> Callable[[str], int]:
        """The positions of all streams at one moment: this one."""
        handle = self._handle()
        return lambda stream: _committed(handle, stream)

    def count_rows(self) -> int:
        """How many rows the newest version holds, from the log alone."""
        handle = self._handle()
        return 0 if handle is None else int(handle.count())

    def schema(self) -> pa.Schema:
        """The columns; empty before the first commit."""
        handle = self._handle()
        return pa.schema([]) if handle is None else schema_of(handle)

    def add_columns(self, schema: pa.Schema) -> pa.Schema:
        """Have all columns of ``schema``: a commit without rows, harmless if nothing follows.

        Returns:
            The columns the table has then, with the types it keeps.

        Raises:
            StoreError: The disk refuses, or another writer kept getting in between.
        """
        from deltalake.exceptions import CommitFailedError

        for _ in range(5):
            with suppress(CommitFailedError), store_errors(self.folder.url):
                handle = self._handle_with(_as_stored(schema))
                return schema_of(handle)
        raise self._contended()

    def append_once(
        self,
        position: Position,
        schema: pa.Schema,
        batches: Callable[[int], Iterable[pa.RecordBatch]],
        after: int | None = None,
    ) -> bool:
        """Append rows and a position in one commit, unless the position is there.

        Args:
            position: Skipped when the stream is already at or beyond it.
            schema: Of all batches; columns the table lacks are added to it.
            batches: Called with the version the commit will have.
            after: The position the rows begin after. If the stream has moved on
                from there, some are committed already, and nothing is appended.

        Returns:
            Whether rows were committed.

        Raises:
            StoreError: The disk refuses, or another writer kept getting in between.
        """
        for _ in range(5):
            have = self.position(position.stream)
            if have >= position.value or after not in (None, have):
                return False
            if self._try_append(position, schema, batches, have):
                return True
        raise self._contended()

    def _contended(self) -> StoreError:
        return StoreError(
            f"Table {self.folder.url} is being written by another process.",
            "Let the other run finish, then run again.",
        )

    def scan(
        self,
        after: int = -1,
        upto: int | None = None,
        columns: list[str] | None = None,
        batch_rows: int = BATCH_ROWS,
    ) -> Iterator[pa.RecordBatch]:
        """Rows that versions ``after + 1 .. upto`` brought, in the order they came.

        Files are read one after the other, so memory stays at one row group.
        Rows older than a column hold null in it. The log is read at once, not
        on the first row: Delta's writer, which may be what consumes the rows,
        does not allow its library to be called from inside.
        """
        handle = self._handle()
        if handle is None:
            return iter(())
        schema = schema_of(handle)
        if columns is not None:
            schema = pa.schema([schema.field(name) for name in columns if name in schema.names])
        files = self._files_in_order(handle, after, upto)
        return (
            conform(batch, schema)
            for name in files
            for batch in _file_rows(self.folder, name, after, upto, schema.names, batch_rows)
        )

    def sweep(self) -> int:
        """Delete files that no version refers to: what a killed write left.

        Only the holder of the claim on this table's stage may call this.

        Returns:
            How many files were deleted.
        """
        handle = self._handle()
        known = set() if handle is None else {PurePath(uri).name for uri in handle.file_uris()}
        # A killed write of a large file leaves "*.parquet#1", a killed commit leaves
        # "_delta_log/*.json#1": vacuum sees neither.
        with store_errors(self.folder.url):
            orphans = [name for name in self.folder.files() if _is_orphan(name, known)]
            self.folder.delete(orphans)
        return len(orphans)

    def _handle(self) -> Any:
        from deltalake import DeltaTable

        url, options = self.folder.url, dict(self.folder.options)
        with store_errors(url):
            if not DeltaTable.is_deltatable(url, options):
                return None
            handle = DeltaTable(url, storage_options=options)
        if _FORGETS in handle.metadata().configuration:
            raise StoreError(
                f"Table {url} has {_FORGETS} set: it forgets which positions it has "
                "taken, and everything would be ingested again.",
                "Take the property off the table: ALTER TABLE ... UNSET TBLPROPERTIES.",
            )
        return handle

    def _try_append(
        self,
        position: Position,
        schema: pa.Schema,
        batches: Callable[[int], Iterable[pa.RecordBatch]],
        have: int,
    ) -> bool:
        from deltalake import CommitProperties, Transaction
        from deltalake.exceptions import CommitFailedError

        rows, stored = _Rows(), _as_stored(schema)
        try:
            with store_errors(self.folder.url):
                handle = self._handle_with(stored)
                if _committed(handle, position.stream) != have:
                    return False
                rows.batches = iter(batches(handle.version() + 1))
                handle.create_write_transaction(
                    self._write_files(stored, rows),
                    "append",
                    stored,
                    self.partitions,
                    commit_properties=CommitProperties(
                        app_transactions=[Transaction(position.stream, position.value)],
                        max_commit_retries=0,
                    ),
                )
        except CommitFailedError:
            return False
        except StoreError:
            if rows.error is not None:
                raise rows.error from rows.error.__cause__
            raise
        return True

    def _handle_with(self, schema: pa.Schema) -> Any:
        """The newest state of a table that has all columns of ``schema``.

        Creating it and adding columns are commits without rows, harmless when
        nothing follows them.
        """
        from deltalake import DeltaTable, Schema

        handle = self._handle()
        wanted = Schema.from_arrow(schema)
        if handle is None:
            self.folder.create()
            options = dict(self.folder.options)
            DeltaTable.create(
                self.folder.url,
                wanted,
                "ignore",
                self.partitions,
                configuration=self.properties,
                storage_options=options,
            )
            handle = self._handle()
        have = {field.name: field.type for field in handle.schema().fields}
        # A known column is in here when its objects gained keys.
        new = [field for field in wanted.fields if have.get(field.name) != field.type]
        if new:
            handle.alter.add_columns(new)
        return handle

    def _write_files(self, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> list[Any]:
        """Write data files, in order, that a commit can then name.

        Delta's own writer shuffles the batches of a commit among its threads; the
        order of rows decides which of two duplicates is kept, so it must stay.
        Files that no commit came to name are swept later.
        """
        actions: list[Any] = []
        rest = iter(batches)
        while (batch := next(rest, None)) is not None:
            actions.append(write_file(self.folder, schema, chain([batch], rest)))
        return actions

    def _files_in_order(self, handle: Any, after: int, upto: int | None) -> list[str]:
        """Names of the files that can hold the asked versions, oldest first."""
        actions = pa.table(handle.get_add_actions(flatten=True)).to_pylist()
        low, high, row = f"min.{VERSION}", f"max.{VERSION}", f"min.{ROW}"
        last = float("inf") if upto is None else upto
        wanted = [action for action in actions if action[high] > after and action[low] <= last]
        wanted.sort(key=lambda action: (action[low], action[row]))
        return [action["path"] for action in wanted]


def schema_of(handle: Any) -> pa.Schema:
    """A table's columns, from its log: a dataset would look at every file."""
    return pa.schema(handle.schema().to_arrow())


def _committed(handle: Any, stream: str) -> int:
    value = None if handle is None else handle.transaction_version(stream)
    return -1 if value is None else int(value)


class _Rows:
    """Batches that remember their own error, apart from those of writing them."""

    def __init__(self) -> None:
        self.batches: Iterator[pa.RecordBatch] = iter(())
        self.error: Exception | None = None

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        try:
            # An empty batch would make a file without a range of versions.
            yield from (batch for batch in self.batches if batch.num_rows)
        except Exception as error:
            self.error = error
            raise


def _as_stored(schema: pa.Schema) -> pa.Schema:
    """A schema as Delta keeps it: no unsigned integers, no dictionaries, microseconds.

    Version and place come first: files are chosen and ordered by them, and Delta
    keeps statistics of 32 columns, and of none that comes after an object.
    """
    first = [name for name in (VERSION, ROW) if name in schema.names]
    rest = [name for name in schema.names if name not in first]
    return pa.schema([(n, _stored_type(schema.field(n).type)) for n in [*first, *rest]])


def _stored_type(type_: pa.DataType) -> pa.DataType:
    types = pa.types
    if types.is_timestamp(type_):
        return pa.timestamp("us", type_.tz)
    if types.is_struct(type_):
        return pa.struct([(field.name, _stored_type(field.type)) for field in type_])
    if types.is_list(type_) or types.is_large_list(type_) or types.is_fixed_size_list(type_):
        return pa.list_(_stored_type(type_.value_type))
    if types.is_dictionary(type_):
        return _stored_type(type_.value_type)
    plain = (
        (types.is_unsigned_integer, pa.int64()),
        (types.is_large_string, pa.string()),
        (types.is_string_view, pa.string()),
        (types.is_large_binary, pa.binary()),
        (types.is_date, pa.date32()),
        (types.is_float16, pa.float32()),
    )
    return next((stored for is_, stored in plain if is_(type_)), type_)


def write_file(
    folder: Folder,
    schema: pa.Schema,
    batches: Iterator[pa.RecordBatch],
    spans: Sequence[str] = (VERSION, ROW),
    partition: Mapping[str, str] | None = None,
) -> Any:
    """Write one file of at most about ``FILE_BYTES``.

    Args:
        folder: The table's.
        schema: Of the file: the table's, without what it is partitioned by.
        batches: Taken from until the file is large enough.
        spans: Columns of whole numbers whose range is told to Delta.
        partition: Column -> value, the same for all rows.

    Returns:
        Delta's action to add the file.
    """
    import pyarrow.parquet as pq
    from deltalake.transaction import AddAction

    parts = [f"{column}={value}" for column, value in (partition or {}).items()]
    name = "/".join([*parts, f"part-{uuid.uuid4()}.parquet"])
    counted = _Spans(spans)
    with folder.written(name) as path:
        with pq.ParquetWriter(path, schema, compression="zstd") as writer:
            num_bytes = 0
            while num_bytes < FILE_BYTES and (batch := next(batches, None)) is not None:
                counted.add(batch)
                writer.write_batch(conform(batch, schema))
                num_bytes += batch.nbytes
        status = path.stat()
    modified_ms = int(status.st_mtime * 1000)
    told = dict(partition or {})
    return AddAction(name, status.st_size, told, modified_ms, True, counted.as_json())


class _Spans:
    """The ranges of some columns in a file, by which files are found and ordered."""

    def __init__(self, columns: Sequence[str]) -> None:
        self._num_rows = 0
        self._num_null = dict.fromkeys(columns, 0)
        self._low: dict[str, int] = {}
        self._high: dict[str, int] = {}

    def add(self, batch: pa.RecordBatch) -> None:
        """Count a batch in."""
        import pyarrow.compute as pc

        self._num_rows += batch.num_rows
        for name in self._num_null:
            self._num_null[name] += batch[name].null_count
            span = pc.min_max(batch[name]).as_py()
            if span["min"] is not None:
                self._low[name] = min(self._low.get(name, span["min"]), span["min"])
                self._high[name] = max(self._high.get(name, span["max"]), span["max"])

    def as_json(self) -> str:
        """Delta's statistics of one file."""
        return json.dumps(
            {
                "numRecords": self._num_rows,
                "minValues": self._low,
                "maxValues": self._high,
                "nullCount": self._num_null,
            }
        )


def _is_orphan(name: str, known: set[str]) -> bool:
    if "/" in name:
        return name.startswith("_delta_log/") and ".json#" in name
    return ".parquet" in name and name not in known


def _file_rows(
    folder: Folder,
    name: str,
    after: int,
    upto: int | None,
    columns: list[str],
    batch_rows: int,
) -> Iterator[pa.RecordBatch]:
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    with store_errors(folder.url), pq.ParquetFile(folder.opened(name)) as file:
        present = set(file.schema_arrow.names)
        read = [name for name in dict.fromkeys([*columns, VERSION]) if name in present]
        for batch in file.iter_batches(batch_size=batch_rows, columns=read):
            keep = pc.greater(batch[VERSION], after)
            if upto is not None:
                keep = pc.and_(keep, pc.less_equal(batch[VERSION], upto))
            kept = batch.filter(keep)
            if kept.num_rows:
                yield kept


def conform(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Give ``batch`` exactly the columns of ``schema``: cast, or null where it has none.

    Raises:
        pyarrow.ArrowInvalid: A value does not fit the column's type.
    """
    columns = [
        # Delta counts time in microseconds, and drops what is finer.
        batch[field.name].cast(field.type, safe=not pa.types.is_timestamp(field.type))
        if field.name in batch.schema.names
        else pa.nulls(batch.num_rows, field.type)
        for field in schema
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def numbered(
    batches: Iterable[pa.RecordBatch], version: int, schema: pa.Schema
) -> Iterator[pa.RecordBatch]:
    """Stamp rows with the version that brings them and their place in it."""
    start = 0
    for batch in batches:
        stamped = batch
        for name, values in (
            (VERSION, pa.repeat(pa.scalar(version, pa.int64()), batch.num_rows)),
            (ROW, pa.array(range(start, start + batch.num_rows), pa.int64())),
        ):
            stamped = (
                stamped.set_column(stamped.schema.get_field_index(name), name, values)
                if name in stamped.schema.names
                else stamped.append_column(name, values)
            )
        start += batch.num_rows
        yield conform(stamped, schema)
