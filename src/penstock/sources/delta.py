"""Delta tables of others, as their log says.

A version is a position, so a table that is only appended to is read by the files
that each version added. Where rows were rewritten, which files cannot tell apart
from new ones, the whole version comes again; a table that lives by MERGE is
better read along a ``cursor``.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from penstock.errors import SourceError, SourceUnavailable
from penstock.registry import did_you_mean
from penstock.sources import cursors
from penstock.sources.base import (
    OFFSET,
    ORIGIN,
    ROW_KEY,
    AnyOptions,
    Options,
    Piece,
    Place,
    Unit,
)
from penstock.sources.cursors import Columns, Kind
from penstock.sources.delta_log import (
    DataFile,
    added_by,
    files_of,
    readable,
    schema_of,
    stream_of,
    whole,
    why_rewritten,
)
from penstock.sources.formats import read_parquet
from penstock.sources.lines import MAX_EXPANSION, MaxExpansion, allowed_bytes

# How delta-rs words it when a store is not reached, is too busy or is broken.
_OUTAGE = re.compile(r"HTTP error|timed out|\b(429|5\d\d) [A-Z]")


class DeltaOptions(Options):
    """Which table, and how its growth is told."""

    uri: Annotated[str, Place()] = Field(
        description="Folder, relative to the recipe, or an object store's address."
    )
    storage_options: Annotated[dict[str, str], Place()] = Field(
        default_factory=dict, description="Of the object store; secrets as ${VAR}."
    )
    version: int | None = Field(None, ge=0, description="Exactly this one; null is the newest.")
    rewrites: Literal["again", "refuse"] = Field(
        "again", description="What to do when rows that were read have been rewritten."
    )
    cursor: str | None = Field(
        None, description="Column that grows, for tables that are merged into."
    )
    key: Columns = Field(
        default_factory=list,
        description="Columns that tell rows with the same cursor apart; needed with `cursor`.",
    )
    null_cursor: Literal["refuse", "leave_out"] = Field(
        "refuse", description="What to do about rows whose cursor is null."
    )
    settle_s: Annotated[float, Place()] = Field(
        5.0, ge=0, description="How old a time in the cursor must be to count."
    )

    max_expansion: MaxExpansion = MAX_EXPANSION

    @model_validator(mode="after")
    def _cursor_fits(self) -> DeltaOptions:
        if self.cursor is not None and not self.key:
            raise ValueError("`cursor` needs a `key`")
        if self.cursor is not None and self.version is not None:
            raise ValueError("`cursor` reads the newest version, so `version` cannot be set")
        return self


class DeltaSource:
    """Rows of a Delta table that somebody else writes."""

    Options: ClassVar[AnyOptions] = DeltaOptions

    def __init__(self, options: DeltaOptions, folder: Path) -> None:
        self._options = options
        is_far = "://" in options.uri
        self._uri = options.uri if is_far else str((folder / options.uri).resolve())
        self._label = options.uri.rstrip("/").rpartition("/")[2] or options.uri

    def snapshot(self) -> tuple[Unit, ...]:
        """Pin a version of the table, or how far its cursor stands."""
        with self._told():
            table = self._open(self._options.version)
            if self._options.cursor is None:
                return (Unit(stream_of(table), table.version(), self._label),)
            position = _Along(table, self._options, self._label).settled_position()
            stream = f"{stream_of(table)}/{self._options.cursor}"
        return () if position is None else (Unit(stream, position, self._label),)

    def read(self, unit: Unit) -> Iterator[Piece]:
        """Yield the rows that came after ``unit.after``, up to the unit's position."""
        with self._told():
            if self._options.cursor is not None:
                table = self._open(None)
                self._refuse_another(table, unit)
                rows = _Along(table, self._options, self._label)
                yield from rows.between(unit.after, unit.position)
                return
            table = self._open(unit.position)
            self._refuse_another(table, unit)
            added = self._added(table, unit)
            if added is None:
                yield from self._rows(table, files_of(table), unit, f"{unit.position}:")
            else:
                yield from self._rows(table, added, unit, "")

    def _added(self, table: Any, unit: Unit) -> list[DataFile] | None:
        """The files that versions after ``unit.after`` added; None if rows were rewritten.

        Raises:
            SourceError: Rows were rewritten, and that is to be refused.
        """
        if unit.after < 0:
            return files_of(table)
        added: list[DataFile] = []
        for version in range(unit.after + 1, unit.position + 1):
            actions = self._commit(version)
            reason = why_rewritten(actions, version)
            if reason is None:
                added += added_by(actions or [], table)
            elif self._options.rewrites == "again":
                return None
            else:
                raise SourceError(
                    f"{self._label}: {reason}",
                    "Read the whole again with `rewrites: again`, or along a `cursor`.",
                )
        return added

    def _rows(
        self, table: Any, files: list[DataFile], unit: Unit, prefix: str
    ) -> Iterator[pa.RecordBatch]:
        schema = schema_of(table)
        filesystem = self._filesystem()
        for file in files:
            row = 0
            with self._data_file(filesystem, file) as handle:
                allowed = allowed_bytes(handle.size(), self._options.max_expansion)
                for batch in read_parquet(handle, f"{self._label}/{file.path}", allowed):
                    places = range(row, row + batch.num_rows)
                    row += batch.num_rows
                    names = [f"{prefix}{file.path}:{place}" for place in places]
                    yield (
                        whole(batch, file, schema, self._label)
                        .append_column(ORIGIN, batch[ORIGIN])
                        .append_column(OFFSET, _repeated(unit.position, batch.num_rows))
                        .append_column(ROW_KEY, pa.array(names, pa.string()))
                    )

    def _open(self, version: int | None) -> Any:
        """The table at a version.

        Raises:
            SourceError: It is not there, or asks more of a reader than we can do.
        """
        from deltalake import DeltaTable
        from deltalake.exceptions import TableNotFoundError

        options = self._storage_options()
        try:
            newest = DeltaTable(self._uri, storage_options=options)
        except TableNotFoundError as error:
            raise SourceError(
                f"There is no Delta table at {self._options.uri!r}.",
                "A local path is relative to the recipe's folder.",
            ) from error
        if version is not None and version > newest.version():
            kind = SourceUnavailable if self._options.version is None else SourceError
            raise kind(
                f"{self._label} has no version {version}; its newest is {newest.version()}.",
                "If it was deleted and made again, run again; otherwise mend `version`.",
            )
        if version is None or version == newest.version():
            return readable(newest, self._label)
        try:
            table = DeltaTable(self._uri, version=version, storage_options=options)
        except Exception as error:
            raise SourceError(
                f"{self._label}: version {version} can no longer be read: {error}",
                "Its log was cleaned up. Run again to pin the newest version.",
            ) from error
        return readable(table, self._label)

    def _refuse_another(self, table: Any, unit: Unit) -> None:
        if not unit.stream.startswith(stream_of(table)):
            raise SourceUnavailable(
                f"{self._label} was deleted and made again since it was pinned.",
                "Run again to read the new table from its start.",
            )

    def _filesystem(self) -> Any:
        import pyarrow.fs
        from deltalake.fs import DeltaStorageHandler

        return pyarrow.fs.PyFileSystem(DeltaStorageHandler(self._uri, self._storage_options()))

    def _storage_options(self) -> dict[str, str] | None:
        """The recipe's, and leave to speak plain HTTP with a store that is addressed by it.

        Delta asks for that leave apart, where other S3 clients go by the address.
        """
        options = dict(self._options.storage_options)
        endpoint = options.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT_URL", "")
        if self._uri.startswith("s3") and endpoint.startswith("http://"):
            options.setdefault("allow_http", "true")
        return options or None

    def _commit(self, version: int) -> list[dict[str, Any]] | None:
        """The actions of one commit; None if the log no longer has it."""
        name = f"_delta_log/{version:020d}.json"
        try:
            with self._filesystem().open_input_stream(name) as file:
                return [json.loads(line) for line in file.read().splitlines() if line.strip()]
        except FileNotFoundError:
            return None

    @contextmanager
    def _data_file(self, filesystem: Any, file: DataFile) -> Iterator[Any]:
        try:
            handle = filesystem.open_input_file(file.path)
        except FileNotFoundError as error:
            raise SourceError(
                f"{self._label}: {file.path} is gone: the table was vacuumed.",
                "Run again to pin the newest version. If that does not help, give the source "
                "another name; then it is read from the start.",
            ) from error
        with handle:
            yield handle

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turn Delta's and the store's errors into ours."""
        from deltalake.exceptions import DeltaError

        try:
            yield
        except FileNotFoundError as error:
            raise SourceError(
                f"{self._label}: a file is gone: the table was vacuumed. {_first_line(error)}",
                "Run again to pin the newest version.",
            ) from error
        except (DeltaError, pa.ArrowException, OSError, json.JSONDecodeError) as error:
            self._raise_outage(error)
            raise SourceError(
                f"{self._label} cannot be read: {_first_line(error)}",
                "Check `uri` and `storage_options`, and that the table is whole.",
            ) from error
        except SourceError as error:
            self._raise_outage(error.__cause__)
            raise

    def _raise_outage(self, error: BaseException | None) -> None:
        """Pass an error on as one that waiting mends, if it is."""
        if _OUTAGE.search(str(error)):
            said = f"{self._label} cannot be read now: {_first_line(error)}"
            raise SourceUnavailable(said, "Check that the store is up; run again.") from error


def _first_line(error: object) -> str:
    return " ".join(str(error).split())[:300]


def _repeated(value: int, count: int) -> pa.Array:
    return pa.repeat(pa.scalar(value, pa.int64()), count)


class _Along:
    """A table's rows along one of its columns, as they are now."""

    def __init__(self, table: Any, options: DeltaOptions, label: str) -> None:
        self._data = table.to_pyarrow_dataset()
        self._schema = schema_of(table)
        self._files = {file.path: file for file in files_of(table)}
        self._options = options
        self._label = label
        self._column = str(options.cursor)
        for name in (self._column, *options.key):
            if name not in self._schema.names:
                raise SourceError(
                    f"{label} has no column {name!r}.{did_you_mean(name, self._schema.names)}",
                    "Mend `cursor` or `key` in the recipe.",
                )
        self._kind = _kind_of(self._type, self._column, label)

    def settled_position(self) -> int | None:
        """How far the cursor has come; None while there is no row."""
        low, high = None, None
        num_null = 0
        settled = cursors.unsettled(self._kind, self._options.settle_s)
        for batch in self._data.to_batches(columns=[self._column]):
            column = batch[self._column]
            num_null += column.null_count
            positions = self._positions(column)
            span = pc.min_max(positions).as_py()
            low = _least(low, span["min"])
            counted = positions if settled is None else _below(positions, settled)
            high = _most(high, pc.max(counted).as_py())
        if num_null and self._options.null_cursor == "refuse":
            raise SourceError(
                f"{self._label}: cursor {self._column!r} is null in {num_null} rows, "
                "which therefore stand nowhere.",
                "Name another column, or leave them out with `null_cursor: leave_out`.",
            )
        if low is not None and low < 0:
            raise SourceError(
                f"{self._label}: cursor {self._column!r} has values below 0, or before 1970.",
                "Name another column as `cursor`.",
            )
        return high

    def between(self, after: int, upto: int) -> Iterator[pa.RecordBatch]:
        """The rows whose cursor lies in (after, upto], in the order of the files."""
        field = pc.field(self._column)
        low = pa.scalar(self._kind.value(max(after, 0)), self._type)
        high = pa.scalar(self._kind.value(upto + 1 if self._kind.steps else upto), self._type)
        seen: set[int] = set()
        # A filter that is a little too wide, so that the files' statistics can be used.
        for batch in self._matching((field >= low) & (field <= high)):
            positions = self._positions(batch[self._column])
            inside = pc.and_(pc.greater(positions, after), pc.less_equal(positions, upto))
            batch = batch.filter(inside)
            if batch.num_rows:
                yield self._keyed(batch, positions.filter(inside), seen)

    def _matching(self, wanted: pc.Expression) -> Iterator[pa.RecordBatch]:
        """The row groups that may hold wanted rows; a dataset would unpack each at once."""
        for fragment in self._data.get_fragments(wanted):
            file = self._files[fragment.path]
            groups = [group.id for group in fragment.subset(wanted).row_groups]
            with self._data.filesystem.open_input_file(fragment.path) as handle:
                allowed = allowed_bytes(handle.size(), self._options.max_expansion)
                label = f"{self._label}/{file.path}"
                for batch in read_parquet(handle, label, allowed, groups):
                    yield whole(batch, file, self._schema, self._label)

    @property
    def _type(self) -> pa.DataType:
        return self._schema.field(self._column).type

    def _keyed(self, batch: pa.RecordBatch, positions: pa.Array, seen: set[int]) -> pa.RecordBatch:
        keys = batch.select(self._options.key).to_pylist()
        names, origins = [], []
        for position, key in zip(positions.to_pylist(), keys, strict=True):
            name = cursors.as_text([position, *key.values()])
            shown = ",".join(f"{column}={value}" for column, value in key.items())
            if hash(name) in seen:
                raise SourceError(
                    f"{self._label}: two rows have the same "
                    f"{' and '.join([self._column, *self._options.key])}: {shown}.",
                    "Name columns as `key` that no two rows share.",
                )
            seen.add(hash(name))
            names.append(name)
            at = self._kind.value(position)
            origins.append(f"{self._label}:{self._column}={at},{shown}")
        return (
            batch.append_column(ORIGIN, pa.array(origins, pa.string()))
            .append_column(OFFSET, positions.cast(pa.int64()))
            .append_column(ROW_KEY, pa.array(names, pa.string()))
        )

    def _positions(self, column: pa.Array) -> pa.Array:
        if pa.types.is_timestamp(self._type):
            return column.cast(pa.timestamp("us", self._type.tz), safe=False).cast(pa.int64())
        if pa.types.is_date(self._type):
            return column.cast(pa.date32()).cast(pa.int32()).cast(pa.int64())
        return column.cast(pa.int64())


def _kind_of(type_: pa.DataType, column: str, label: str) -> Kind:
    """How the cursor's positions are counted, going by its type.

    Raises:
        SourceError: It is not an integer, a timestamp or a date.
    """
    if pa.types.is_timestamp(type_):
        return cursors.PLAIN_TIMES if type_.tz is None else cursors.ZONED_TIMES
    if pa.types.is_date(type_):
        return cursors.DATES
    if pa.types.is_integer(type_):
        return cursors.INTEGERS
    raise SourceError(
        f"{label}: cursor {column!r} is {type_}. Valid: an integer, a timestamp or a date.",
        "Name another column as `cursor`.",
    )


def _below(positions: pa.Array, limit: int) -> pa.Array:
    return positions.filter(pc.less(positions, limit))


def _least(one: int | None, other: int | None) -> int | None:
    return other if one is None else one if other is None else min(one, other)


def _most(one: int | None, other: int | None) -> int | None:
    return other if one is None else one if other is None else max(one, other)
