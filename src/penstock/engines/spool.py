"""Rows on disk between two steps: written once, read in order, then discarded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType

import pyarrow as pa

from penstock.artifacts import store_errors

# Large enough that per-batch costs vanish, small enough that a few fit in cache.
BATCH_BYTES = 16 << 20


class Spool:
    """Rows in one Arrow stream file.

    Write inside a ``with`` block, read after it::

        with Spool(path, schema) as spool:
            spool.write(table)
        for table in spool.batches(): ...
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.schema = schema
        self.num_rows = 0
        self.num_bytes = 0  # in memory
        self._path = path
        with store_errors(path):
            self._writer = pa.ipc.new_stream(
                str(path), schema, options=pa.ipc.IpcWriteOptions(compression="lz4")
            )

    def __enter__(self) -> Spool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with store_errors(self._path):
            self._writer.close()

    def write(self, table: pa.Table, batch_bytes: int = BATCH_BYTES) -> None:
        """Append rows, in batches of about ``batch_bytes``."""
        self.num_rows += table.num_rows
        self.num_bytes += table.nbytes
        with store_errors(self._path):
            for piece in cut(table, batch_bytes):
                self._writer.write_table(piece)

    def batches(self) -> Iterator[pa.Table]:
        """The rows in the order they were written; may be called again."""
        with pa.OSFile(str(self._path)) as file, pa.ipc.open_stream(file) as reader:
            for batch in reader:
                yield pa.Table.from_batches([batch])

    def discard(self) -> None:
        """Delete the file."""
        self._path.unlink(missing_ok=True)


def recut(tables: Iterable[pa.Table], batch_bytes: int = BATCH_BYTES) -> Iterator[pa.Table]:
    """The same rows in tables of about ``batch_bytes``, however they came."""
    waiting: list[pa.Table] = []
    num_bytes = 0
    for table in tables:
        for piece in cut(table, batch_bytes):
            waiting.append(piece)
            num_bytes += piece.nbytes
            if num_bytes >= batch_bytes:
                table = pa.concat_tables(waiting).combine_chunks()
                waiting, num_bytes = [], 0  # before it is worked on: that takes memory too
                yield table
    if waiting:
        yield pa.concat_tables(waiting).combine_chunks()


def cut(table: pa.Table, batch_bytes: int) -> Iterator[pa.Table]:
    """The rows in tables of about ``batch_bytes``; none for no rows."""
    num_pieces = -(-table.nbytes // batch_bytes)
    num_rows = max(1, -(-table.num_rows // max(1, num_pieces)))
    for start in range(0, table.num_rows, num_rows):
        yield table.slice(start, num_rows)
