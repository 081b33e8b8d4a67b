"""JSON Lines, CSV and Parquet -> batches of rows and dead letters.

Each reader takes an open file and yields in file order, holding no more than
one batch: ``BATCH_ROWS`` rows or ``BATCH_BYTES`` of input, whichever is less.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from penstock.errors import SourceError
from penstock.sources.base import (
    EXCERPT_CHARACTERS,
    ORIGIN,
    DeadLetter,
    Piece,
    refuse_reserved,
)
from penstock.sources.columns import ColumnTypes, printable
from penstock.sources.lines import (
    MAX_LINE_BYTES,
    NO_BOMB_BYTES,
    refuse_binary,
    refuse_bomb,
    split_lines,
)
from penstock.sources.shapes import SCALARS, WORDS

BATCH_ROWS = 10_000
BATCH_BYTES = 32 << 20

_TOO_LONG = f"longer than {MAX_LINE_BYTES >> 20} MiB"

# What a text cell must look like to be of a type. JSON's grammar, so "007"
# stays text; and no integer that a double would round.
_PATTERNS: dict[type, str] = {
    int: r"^-?(0|[1-9]\d{0,17})$",
    float: r"^-?(0|[1-9]\d{0,14})(\.\d{1,30})?([eE][+-]?\d{1,2})?$",
    bool: r"^(true|false|True|False)$",
}


def read_jsonl(chunks: Iterable[bytes], label: str, kinds: Mapping[str, type]) -> Iterator[Piece]:
    """One JSON object a line.

    Args:
        chunks: The file's text, UTF-8, cut anywhere.
        label: The file's, for origins.
        kinds: Of columns whose type is settled beforehand: bool, float or str.

    Yields:
        Batches, and a letter for each line that is not an object or holds a
        value that contradicts its column.

    Raises:
        SourceError: The file is not text, or uses keys as data.
    """
    columns = ColumnTypes(label, kinds)
    rows: list[dict[str, Any]] = []
    places: list[int] = []
    num_bytes = 0
    for place, line in enumerate(split_lines(refuse_binary(chunks, label, "JSON Lines")), 1):
        if not line or line.isspace():
            continue
        try:
            row = parse_object(line)
        except ValueError as error:
            yield DeadLetter(f"{label}:{place}", str(error), excerpt(line))
            continue
        rows.append(row)
        places.append(place)
        num_bytes += len(line)
        if len(rows) >= BATCH_ROWS or num_bytes >= BATCH_BYTES:
            yield from _pieces(columns.batch(rows, places))
            rows, places, num_bytes = [], [], 0
    yield from _pieces(columns.batch(rows, places))


def _refuse_constant(token: str) -> None:
    raise ValueError(f"{token} is not JSON")


def _finite(token: str) -> float:
    value = float(token)
    if math.isinf(value):
        raise ValueError(f"number {token[:40]} is out of range")
    return value


_decode = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite).decode


def parse_object(line: bytes) -> dict[str, Any]:
    """Parse one line, or one message.

    Raises:
        ValueError: In words for a person, why it is not a row.
    """
    if len(line) > MAX_LINE_BYTES:
        raise ValueError(_TOO_LONG)
    try:
        value = _decode(line.decode())
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: {error.reason} at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError(f"expected an object, got {type(value).__name__}")
    return value


def excerpt(line: bytes) -> str:
    """The first characters of a line, whatever it is."""
    # A character has at most four bytes.
    return line[: 4 * EXCERPT_CHARACTERS].decode("utf-8", "replace")[:EXCERPT_CHARACTERS]


def _pieces(outcome: tuple[pa.RecordBatch | None, list[DeadLetter]]) -> Iterator[Piece]:
    batch, letters = outcome
    yield from letters
    if batch is not None:
        yield batch


class _Record(NamedTuple):
    """One CSV record: the line it begins on, its cells, and what is wrong with it."""

    place: int
    cells: list[str]
    fault: str = ""


class _CsvRecords:
    """The records of a CSV file, header first; none is lost to a bad neighbour."""

    def __init__(self, chunks: Iterable[bytes], label: str, delimiter: str) -> None:
        # The module's own limit of 128 KiB a cell is for the whole process; ours
        # is larger than any that a careful caller needs.
        csv.field_size_limit(max(MAX_LINE_BYTES, csv.field_size_limit()))
        self._lines = split_lines(refuse_binary(chunks, label, "CSV"))
        self._num_lines = 0
        self._delimiter = delimiter
        self._reader = self._new_reader()
        self._fault = ""

    def __iter__(self) -> Iterator[_Record]:
        while True:
            place = self._num_lines + 1
            self._fault = ""
            cells: list[str] = []
            try:
                cells = next(self._reader)
            except StopIteration:
                if not self._fault:
                    return
            except csv.Error as error:
                self._fault = self._fault or f"not CSV: {error}"
            if self._fault == _TOO_LONG:
                self._reader = self._new_reader()
            if cells or self._fault:
                yield _Record(place, cells, self._fault)

    def _new_reader(self) -> Iterator[list[str]]:
        return csv.reader(self._text(), delimiter=self._delimiter, strict=True)

    def _text(self) -> Iterator[str]:
        """Lines up to one that is too long, which ends the record it is in.

        Its closing quote may be in the part that was cut off: read on, and the
        open quote would swallow the records that follow.
        """
        for line in self._lines:
            self._num_lines += 1
            if len(line) > MAX_LINE_BYTES:
                self._fault = _TOO_LONG
                return
            try:
                yield line.decode() + "\n"
            except UnicodeDecodeError as error:
                self._fault = f"not UTF-8: {error.reason} at byte {error.start}"
                yield line.decode("utf-8", "replace") + "\n"


def csv_kinds(chunks: Iterable[bytes], label: str, delimiter: str) -> dict[str, type]:
    """Find the kind of every column from the whole file.

    CSV cells are text; guessing from the first of them would lose rows later.
    A column is integer, number or boolean only if every cell that is not empty
    is one; those missing from the answer are text.
    """
    possible: dict[str, list[type]] = {}
    filled: set[str] = set()
    for batch in _csv_batches(chunks, label, delimiter):
        if isinstance(batch, DeadLetter):
            continue
        for name in batch.schema.names:
            cells = batch[name].drop_null()
            if len(cells):
                filled.add(name)
            kinds = possible.get(name, list(_PATTERNS))
            possible[name] = [kind for kind in kinds if _all_match(cells, kind)]
    return {name: kinds[0] for name, kinds in possible.items() if kinds and name in filled}


def _all_match(cells: pa.Array, kind: type) -> bool:
    return pc.all(pc.match_substring_regex(cells, _PATTERNS[kind])).as_py() is not False


def read_csv(
    chunks: Iterable[bytes], label: str, delimiter: str, kinds: Mapping[str, type]
) -> Iterator[Piece]:
    """Records under a header line; an empty cell is null.

    Args:
        chunks: The file's text, UTF-8, cut anywhere.
        label: The file's, for origins.
        delimiter: One character.
        kinds: Of the columns that are not text, as ``csv_kinds`` found or a user settled them.

    Yields:
        Batches, all with the same columns and types, and a letter for each
        record that is not one or does not fit its column's type.

    Raises:
        SourceError: The header is missing, repeats a name, or has a reserved one.
    """
    for piece in _csv_batches(chunks, label, delimiter):
        if isinstance(piece, DeadLetter):
            yield piece
        else:
            yield from _typed(piece, kinds)


def _csv_batches(chunks: Iterable[bytes], label: str, delimiter: str) -> Iterator[Piece]:
    """All records as text, in bounded batches."""
    records = iter(_CsvRecords(chunks, label, delimiter))
    header = _header(next(records, None), label)
    kept: list[_Record] = []
    num_characters = 0
    for record in records:
        fault = record.fault
        if not fault and len(record.cells) != len(header):
            fault = f"expected {len(header)} cells, got {len(record.cells)}"
        if fault:
            text = printable(delimiter.join(record.cells))
            yield DeadLetter(f"{label}:{record.place}", fault, text)
            continue
        kept.append(record)
        num_characters += sum(map(len, record.cells))
        if len(kept) >= BATCH_ROWS or num_characters >= BATCH_BYTES:
            yield _text_batch(header, kept, label)
            kept, num_characters = [], 0
    if kept:
        yield _text_batch(header, kept, label)


def _header(record: _Record | None, label: str) -> list[str]:
    if record is None or record.fault:
        reason = record.fault if record else "the file is blank"
        raise SourceError(f"{label}: no CSV header: {reason}.", "Name the columns in line 1.")
    names = record.cells
    refuse_reserved(names, label)
    for index, name in enumerate(names):
        if not name.strip() or name in names[:index]:
            what = f"named {name!r} again" if name.strip() else "without a name"
            raise SourceError(
                f"{label}: column {index + 1} is {what}.", "Give every column a name of its own."
            )
    return names


def _text_batch(header: Sequence[str], records: Sequence[_Record], label: str) -> pa.RecordBatch:
    columns = {
        name: pa.array([cell or None for cell in cells], pa.string())
        for name, cells in zip(
            header, zip(*(record.cells for record in records), strict=True), strict=True
        )
    }
    origins = [f"{label}:{record.place}" for record in records]
    return pa.RecordBatch.from_pydict(columns | {ORIGIN: pa.array(origins, pa.string())})


def _typed(batch: pa.RecordBatch, kinds: Mapping[str, type]) -> Iterator[Piece]:
    """Cast the columns; a cell that is not of its column's type costs its row."""
    typed = {name: kind for name, kind in kinds.items() if kind in _PATTERNS}
    fits = pa.repeat(True, batch.num_rows)
    for name in [name for name in batch.schema.names if name in typed]:
        matches = pc.match_substring_regex(batch[name], _PATTERNS[typed[name]])
        matches = pc.fill_null(matches, True)
        for index in pc.indices_nonzero(pc.and_(fits, pc.invert(matches))).to_pylist():
            reason = f"column {name}: expected {WORDS[typed[name]]}, got {batch[name][index]!s}"
            text = " ".join(str(value) for value in batch.slice(index, 1).to_pylist()[0].values())
            yield DeadLetter(batch[ORIGIN][index].as_py(), printable(reason), printable(text))
        fits = pc.and_(fits, matches)
    kept = batch.filter(fits)
    if kept.num_rows:
        columns = {
            name: kept[name].cast(SCALARS[typed.get(name, str)]) for name in kept.schema.names
        }
        yield pa.RecordBatch.from_pydict(columns)


def read_parquet(
    file: BinaryIO,
    label: str,
    allowed: int = NO_BOMB_BYTES,
    groups: Sequence[int] | None = None,
) -> Iterator[pa.RecordBatch]:
    """Rows of a Parquet file, with the types it declares.

    Args:
        file: Open to be read from anywhere.
        label: The file's, for origins.
        allowed: How many bytes the rows may be.
        groups: Only these row groups.

    Raises:
        SourceError: It is not a whole Parquet file, or has a column of a reserved name, or
            unpacks to more than is allowed.
    """
    try:
        with pq.ParquetFile(file, pre_buffer=False, page_checksum_verification=True) as parquet:
            refuse_reserved(parquet.schema_arrow.names, label)
            if groups is None:
                groups = range(parquet.num_row_groups)
            rows = _at_once(file, [parquet.metadata.row_group(i) for i in groups])
            steps = parquet.iter_batches(batch_size=rows, row_groups=list(groups))
            yield from _parquet_batches(steps, label, allowed)
    except (pa.ArrowException, OSError) as error:
        raise SourceError(
            f"{label}: not a whole Parquet file: {error}",
            "Copy the file again, or set `format` to what it is.",
        ) from error


def _parquet_batches(
    steps: Iterable[pa.RecordBatch], label: str, allowed: int
) -> Iterator[pa.RecordBatch]:
    row, num_bytes = 1, 0
    for batch in _joined(map(_decoded, steps)):
        num_bytes += batch.nbytes
        refuse_bomb(num_bytes, allowed, label)
        # Arrow trusts a file that its text is UTF-8.
        batch.validate(full=True)
        origins = [f"{label}:{place}" for place in range(row, row + batch.num_rows)]
        row += batch.num_rows
        yield batch.append_column(ORIGIN, pa.array(origins, pa.string()))


def _joined(steps: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Batches of ``BATCH_ROWS`` or ``BATCH_BYTES``, whichever is less, and at most a step more."""
    held: list[pa.RecordBatch] = []
    for step in steps:
        held.append(step)
        if (
            sum(one.num_rows for one in held) >= BATCH_ROWS
            or sum(one.nbytes for one in held) >= BATCH_BYTES
        ):
            yield pa.concat_batches(held)
            held = []
    if held:
        yield pa.concat_batches(held)


def _decoded(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Plain values: a dictionary is Parquet's way of packing, not the user's type."""
    columns = [
        column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
        for column in batch.columns
    ]
    return pa.RecordBatch.from_arrays(columns, batch.schema.names)


def _at_once(file: BinaryIO, groups: Iterable[pq.RowGroupMetaData]) -> int:
    """How many rows can be read in one step.

    Going by the average row, they fill a batch. And were every text the longest that it
    can be, which is a whole dictionary, they would fill four.
    """
    rows = BATCH_ROWS
    for group in groups:
        columns = [group.column(i) for i in range(group.num_columns)]
        average = sum(_read_bytes(column) for column in columns)
        utmost = sum(_dictionary_bytes(file, column) * column.num_values for column in columns)
        rows = min(
            rows,
            BATCH_BYTES * group.num_rows // max(1, average),
            4 * BATCH_BYTES * group.num_rows // max(1, utmost),
        )
    return max(1, rows)


def _read_bytes(column: pq.ColumnChunkMetaData) -> int:
    """What a column takes once it is read, but for texts: equal numbers no longer nothing."""
    return max(int(column.total_uncompressed_size), 8 * int(column.num_values))


def _dictionary_bytes(file: BinaryIO, column: pq.ColumnChunkMetaData) -> int:
    """How large the dictionary of a column of texts is; 0 without one.

    A text of 16 MiB stands in a file once, and in each row that has it by its number. A
    page's header begins with its type and its size unpacked, which pyarrow does not show:
    two fields, each as a byte and a zigzag varint (parquet-format's PageHeader, in Thrift's
    compact protocol).
    """
    if column.physical_type not in ("BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY"):
        return 0
    file.seek(column.dictionary_page_offset or column.data_page_offset)
    header = file.read(8)
    if header[:3] != b"\x15\x04\x15":  # field 1 is 2, a dictionary; field 2 follows
        return 0
    size = 0
    for shift, byte in enumerate(header[3:]):
        size |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            break
    return size >> 1
