"""What a training reads: one example for each row, or blocks that rows are packed in."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from penstock.stages.prepare import SPLIT
from penstock.transforms.pack import PIECES, Packed, Packer, block_schema

_ROW = block_schema(apart=False)
# Pieces of the rows of both splits.
BLOCK_PIECES = pa.schema([(SPLIT, pa.string()), *PIECES])


class RowWriter:
    """Writes rows as they are to ``SPLIT.arrow``."""

    def __init__(self, folder: Path, split: str) -> None:
        self._writer = pa.ipc.new_stream(str(folder / f"{split}.arrow"), _ROW)
        self.num_rows = 0

    def write(self, rows: pa.RecordBatch) -> None:
        """Take some rows."""
        self._writer.write_batch(rows.select(_ROW.names))
        self.num_rows += rows.num_rows

    def close(self) -> None:
        """There are no more."""
        self._writer.close()


class BlockWriter:
    """Writes blocks of rows to ``SPLIT.arrow``, and what is in them to ``SPLIT.parquet``."""

    def __init__(self, folder: Path, split: str, packer: Packer) -> None:
        schema = block_schema(packer.apart)
        self._writer = pa.ipc.new_stream(str(folder / f"{split}.arrow"), schema)
        self._pieces = pq.ParquetWriter(folder / f"{split}.parquet", BLOCK_PIECES)
        self._split = split
        self._packer = packer
        self.num_rows = 0

    def write(self, rows: pa.RecordBatch) -> None:
        """Take some rows."""
        for packed in self._packer.add(pa.Table.from_batches([rows])):
            self._write(packed)
        self.num_rows += rows.num_rows

    def close(self) -> None:
        """There are no more."""
        for packed in self._packer.finish():
            self._write(packed)
        self._writer.close()
        self._pieces.close()

    def _write(self, packed: Packed) -> None:
        self._writer.write_table(packed.blocks)
        split = pa.repeat(self._split, packed.pieces.num_rows)
        self._pieces.write_table(packed.pieces.add_column(0, SPLIT, split))


def join_pieces(folder: Path, path: Path) -> None:
    """One file of the pieces of all splits."""
    with pq.ParquetWriter(path, BLOCK_PIECES, compression="zstd") as writer:
        for split in ("train", "validation"):
            with pq.ParquetFile(folder / f"{split}.parquet") as file:
                for batch in file.iter_batches():
                    writer.write_batch(batch)
