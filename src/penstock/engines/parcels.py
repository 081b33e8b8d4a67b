"""Rows as parcels: how an engine of several processes moves them.

A parcel is some rows as Arrow IPC bytes, with their place in ingest order and
their bucket. Ray and Spark move parcels as Arrow tables of four plain columns
and never see into them, so whatever types the rows have, they come out as they
went in, on every engine. Parcels go out in Parquet files, one parcel to a row group.

An engine built on this says one thing: how work is done on the parcels of some
files, and then, if rows must meet, on those of each bucket together.
"""

from __future__ import annotations

import json
import pickle
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Annotated, Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field

from penstock import errors
from penstock.artifacts import store_errors
from penstock.engines.base import Mapped, Rows, in_ingest_order
from penstock.engines.groups import (
    MERGE_BATCH_BYTES,
    ORDINAL,
    Part,
    chosen,
    divided,
    merge,
    num_buckets,
    with_key,
    without_ordinal,
)
from penstock.engines.spool import BATCH_BYTES, Spool, cut, recut
from penstock.errors import EngineError, PenstockError
from penstock.sources.base import Options, Place
from penstock.transforms.base import KeyedTransform, RowTransform

PARCEL_BYTES = 4 << 20
FILE_BYTES = 16 << 20
BUCKET_BYTES = 16 << 20

Kind = Literal["rows", "kept", "removed", "error"]
PARCELS = pa.schema(
    [
        ("bucket", pa.int64()),
        ("place", pa.int64()),  # of the first row in it, in ingest order
        ("kind", pa.string()),
        ("rows", pa.large_binary()),  # an Arrow IPC stream, or JSON of an error
    ]
)


class ParcelOptions(Options):
    """How much one worker does at once."""

    parcel_bytes: Annotated[int, Place()] = Field(
        PARCEL_BYTES, ge=1, description="Bytes of rows transformed at once."
    )
    bucket_bytes: Annotated[int, Place()] = Field(
        BUCKET_BYTES, ge=1, description="Bytes of rows grouped at once."
    )


@dataclass(frozen=True)
class Work:
    """What is done to parcels, in any process.

    Attributes:
        step: ``map`` transforms rows, ``divide`` sorts them into buckets by key,
            ``choose`` lets a keyed transform choose in one bucket.
        transform: Pickled as it was before it was opened.
        paths: Where its module may be beside the installed ones.
        num_buckets: For ``divide``.
        piece_bytes: For ``choose``: how much of a bucket is unpacked at once, if its
            transform does not need to see all of it.
    """

    step: Literal["map", "divide", "choose"]
    transform: bytes
    paths: tuple[str, ...]
    num_buckets: int = 1
    piece_bytes: int = BUCKET_BYTES

    def __call__(self, parcels: pa.Table) -> pa.Table:
        """Work on parcels; an error becomes a parcel too, so that it is said as it was."""
        failed = parcels.filter(pc.equal(parcels["kind"], "error"))
        if failed.num_rows:
            return failed.select(PARCELS.names).cast(PARCELS)
        try:
            return _table_of(self._parcels(parcels))
        except Exception as error:
            return _table_of([_Parcel(0, 0, "error", json.dumps(_said(error)).encode())])

    def _parcels(self, parcels: pa.Table) -> Iterator[_Parcel]:
        transform = _opened(self.transform, self.paths)
        if self.step == "choose":
            yield from _choose(parcels, transform, self.piece_bytes)
            return
        for parcel in parcels.to_pylist():
            rows, place = unpacked(parcel["rows"]), parcel["place"]
            if self.step == "divide":
                yield from _divide(rows, place, transform, self.num_buckets)
            else:
                yield from _map(rows, place, transform)


@dataclass(frozen=True)
class _Parcel:
    bucket: int
    place: int
    kind: Kind
    rows: bytes


def packed(table: pa.Table) -> bytes:
    """Rows as bytes."""
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def unpacked(data: bytes | pa.Buffer) -> pa.Table:
    """The rows again."""
    return pa.ipc.open_stream(data).read_all()


def _map(rows: pa.Table, place: int, transform: RowTransform) -> Iterator[_Parcel]:
    outcome = transform(rows)
    yield _Parcel(0, place, "kept", packed(outcome.kept))
    yield _Parcel(0, place, "removed", packed(in_ingest_order(outcome.removed, rows)[0]))


def _divide(
    rows: pa.Table, place: int, transform: KeyedTransform, number: int
) -> Iterator[_Parcel]:
    keyed = with_key(rows, place, transform)
    for bucket, part in enumerate(divided(keyed, number)):
        # One parcel goes on even if there are no rows at all: it has the schema.
        if part.num_rows or bucket == place == 0:
            yield _Parcel(bucket, place, "rows", packed(part))


def _choose(parcels: pa.Table, transform: KeyedTransform, piece_bytes: int) -> Iterator[_Parcel]:
    bucket, data = parcels["bucket"][0].as_py(), parcels["rows"]
    order = pc.sort_indices(parcels["place"]).to_pylist()
    rows = (unpacked(data[index].as_buffer()) for index in order)
    schema = unpacked(data[0].as_buffer()).schema
    for kept, removed in chosen(rows, schema, transform, piece_bytes):
        yield from _cut("kept", kept, bucket)
        yield from _cut("removed", removed, bucket)


def _cut(kind: Kind, table: pa.Table, bucket: int) -> Iterator[_Parcel]:
    """Parcels small enough to be merged; of no rows one, which has the schema."""
    for part in list(cut(table, MERGE_BATCH_BYTES)) or [table]:
        place = part[ORDINAL][0].as_py() if part.num_rows else 0
        yield _Parcel(bucket, place, kind, packed(part))


def _table_of(parcels: Iterable[_Parcel]) -> pa.Table:
    rows = [(p.bucket, p.place, p.kind, p.rows) for p in parcels]
    columns: list[Sequence[Any]] = list(zip(*rows, strict=True)) or [()] * len(PARCELS)
    arrays = [pa.array(c, f.type) for c, f in zip(columns, PARCELS, strict=True)]
    return pa.table(arrays, schema=PARCELS)


def _said(error: Exception) -> tuple[str, str, str]:
    """An error's class, message and hint; of a bug, also where it is."""
    if isinstance(error, PenstockError):
        return type(error).__name__, error.message, error.hint
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return (
        EngineError.__name__,
        f"A transform failed: {type(error).__name__}: {error}",
        f"It was in {frame.filename}, line {frame.lineno}; `prepare.engine: local` shows the way.",
    )


@lru_cache(maxsize=8)
def _opened(transform: bytes, paths: tuple[str, ...]) -> Any:
    """The transform, opened once in each process."""
    sys.path += [path for path in paths if path not in sys.path]
    copy = pickle.loads(transform)  # noqa: S301  # what this engine has pickled
    copy.open()
    return copy


def _pickled(transform: Any) -> bytes:
    try:
        return pickle.dumps(transform)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise PenstockError(
            f"{transform.name}: it cannot be sent to other processes: {error}",
            "Define it at the top of a module, and open files and models in open().",
        ) from error


def _own_paths() -> tuple[str, ...]:
    """Where modules are found that are not installed: beside the recipe, for one."""
    installed = tuple({sys.prefix, sys.base_prefix, sys.exec_prefix})
    return tuple(str(Path(p).resolve()) for p in sys.path if p and not p.startswith(installed))


# -- where the rows are handed out and come back -----------------------------------


class ParcelEngine:
    """Base of the engines that move parcels.

    Args:
        scratch: A folder that every worker sees; the caller deletes it.
        parcel_bytes: How many bytes of rows to transform at once.
        bucket_bytes: How many bytes of rows to group at once.
    """

    def __init__(
        self, scratch: Path, parcel_bytes: int = PARCEL_BYTES, bucket_bytes: int = BUCKET_BYTES
    ) -> None:
        scratch.mkdir(parents=True, exist_ok=True)
        self._scratch = scratch.resolve()
        self._parcel_bytes = parcel_bytes
        self._bucket_bytes = bucket_bytes
        self._numbers = count()

    def map_batches(self, rows: Rows, transform: RowTransform) -> Mapped:
        """Transform the rows, a parcel at a time."""
        sent = self._send(rows)
        work = Work("map", _pickled(transform), _own_paths())
        back = self._receive(self._work(sent.files, work, None))
        sent.discard()
        return Mapped(back.stored("kept"), back.stored("removed"))

    def map_groups(self, rows: Rows, transform: KeyedTransform) -> Mapped:
        """Bring the rows of each key together and let the transform choose."""
        sent = self._send(rows)
        number = num_buckets(sent.num_bytes, self._bucket_bytes)
        pickled, paths = _pickled(transform), _own_paths()
        divide = Work("divide", pickled, paths, number)
        choose = Work("choose", pickled, paths, piece_bytes=self._bucket_bytes)
        back = self._receive(self._work(sent.files, divide, choose))
        sent.discard()
        kept = self._merge(back.parts("kept"), sent.num_rows)
        removed = self._merge(back.parts("removed"), sent.num_rows)
        back.discard()
        return Mapped(kept, removed)

    def close(self) -> None:
        """Stop what was started."""
        raise NotImplementedError

    def _work(self, files: Sequence[Path], first: Work, then: Work | None) -> Iterator[pa.Table]:
        """Do ``first`` on the parcels of each file, ``then`` on those of each bucket.

        Yields:
            Tables of ``PARCELS``, in any order.
        """
        raise NotImplementedError

    def _send(self, rows: Rows) -> _Sent:
        sent = _Sent(self._path)
        for table in recut(rows.batches(), self._parcel_bytes):
            sent.add(table)
        if not sent.files:
            sent.add(rows.schema.empty_table())
        sent.close()
        return sent

    def _receive(self, tables: Iterable[pa.Table]) -> _Received:
        received = _Received(self._path())
        with received:
            for table in tables:
                for parcel in table.to_pylist():
                    received.add(parcel)
        received.check()
        return received

    def _merge(self, parts: Sequence[Part], num_ordinals: int) -> Spool:
        merged = Spool(self._path(), without_ordinal(parts[0].schema))
        merge(parts, num_ordinals, BATCH_BYTES, merged)
        return merged

    def _path(self) -> Path:
        return self._scratch / f"{next(self._numbers):06d}"


class _Sent:
    """Rows on their way: Parquet files of parcels."""

    def __init__(self, path: Any) -> None:
        self.files: list[Path] = []
        self.num_rows = 0
        self.num_bytes = 0
        self._path = path
        self._writer: pq.ParquetWriter | None = None
        self._room = 0

    def add(self, table: pa.Table) -> None:
        """Pack some rows; they become one row group."""
        if self._room <= 0:
            self.close()
            self.files.append(self._path().with_suffix(".parquet"))
            self._room = FILE_BYTES
        with store_errors(self.files[-1]):
            if self._writer is None:
                self._writer = pq.ParquetWriter(
                    self.files[-1], PARCELS, compression="none", use_dictionary=False,
                    write_statistics=False, store_schema=True,
                )  # fmt: skip
            self._writer.write_table(_table_of([_Parcel(0, self.num_rows, "rows", packed(table))]))
        self.num_rows += table.num_rows
        self.num_bytes += table.nbytes
        self._room -= table.nbytes

    def close(self) -> None:
        """End the last file."""
        if self._writer is not None:
            with store_errors(self.files[-1]):
                self._writer.close()
            self._writer = None

    def discard(self) -> None:
        """Delete the files."""
        for path in self.files:
            path.unlink(missing_ok=True)


@dataclass(order=True, frozen=True)
class _Entry:
    """Where a parcel that came back is in the file."""

    place: int
    offset: int = field(compare=False)
    size: int = field(compare=False)
    num_rows: int = field(compare=False)
    num_bytes: int = field(compare=False)


class _Received:
    """Parcels that came back, in any order, one after the other in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._entries: dict[tuple[str, int], list[_Entry]] = {}
        self._schemas: dict[str, pa.Schema] = {}
        self._errors: list[str] = []
        self._in_use = 0

    def __enter__(self) -> _Received:
        with store_errors(self._path):
            self._file = self._path.open("wb")
        return self

    def __exit__(self, *_: object) -> None:
        with store_errors(self._path):
            self._file.close()

    def add(self, parcel: dict[str, Any]) -> None:
        """Write one parcel down."""
        kind, data = parcel["kind"], parcel["rows"]
        if kind == "error":
            self._errors.append(data.decode())
            return
        table = unpacked(data)
        self._schemas[kind] = table.schema
        with store_errors(self._path):
            offset = self._file.tell()
            self._file.write(data)
        entry = _Entry(parcel["place"], offset, len(data), table.num_rows, table.nbytes)
        self._entries.setdefault((kind, parcel["bucket"]), []).append(entry)

    def check(self) -> None:
        """Raise the error that came back, if one did.

        Raises:
            PenstockError: Of the class it was raised as.
        """
        if self._errors:
            name, message, hint = json.loads(min(self._errors))
            kind = getattr(errors, name, PenstockError)
            error = kind.__new__(kind)
            PenstockError.__init__(error, message, hint)
            raise error

    def stored(self, kind: Kind) -> _Stored:
        """All parcels of a kind, in ingest order; the file goes when all kinds are discarded."""
        self._in_use += 1
        entries = sorted(self._entries[kind, 0])
        return _Stored(self._schemas[kind], entries, self._path, self._release)

    def parts(self, kind: Kind) -> list[_Stored]:
        """The parcels of a kind, each bucket by itself."""
        keys = sorted(key for key in self._entries if key[0] == kind)
        return [
            _Stored(self._schemas[kind], sorted(self._entries[key]), self._path, lambda: None)
            for key in keys
        ]

    def _release(self) -> None:
        self._in_use -= 1
        if self._in_use == 0:
            self.discard()

    def discard(self) -> None:
        """Delete the file."""
        self._path.unlink(missing_ok=True)


class _Stored:
    """Some of the parcels that came back, as stored rows."""

    def __init__(
        self,
        schema: pa.Schema,
        entries: list[_Entry],
        path: Path,
        release: Callable[[], None],
    ) -> None:
        self.schema = schema
        self.num_rows = sum(entry.num_rows for entry in entries)
        self.num_bytes = sum(entry.num_bytes for entry in entries)
        self._entries = entries
        self._path = path
        self._release = release

    def batches(self) -> Iterator[pa.Table]:
        """The rows in ingest order; may be called again."""
        with self._path.open("rb") as file:
            for entry in self._entries:
                if entry.num_rows:
                    file.seek(entry.offset)
                    yield unpacked(file.read(entry.size))

    def discard(self) -> None:
        """Free the place, once nothing else in the file is needed."""
        self._release()
        self._release = lambda: None
