"""A column that grows, and what follows from it: positions, row keys, batches.

A cursor is an integer, a time or a date. Several rows may hold the same value,
so a unit ends behind all rows of one value, and a row is known by its value and
its key columns, or by its value and its content where there is no key.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from hashlib import blake2b
from typing import Annotated, Any, NamedTuple, TypeAlias

import pyarrow as pa
from pydantic import BeforeValidator

from penstock.errors import SourceError
from penstock.sources.base import OFFSET, ORIGIN, ROW_KEY, DeadLetter, Piece
from penstock.sources.columns import ColumnTypes
from penstock.sources.formats import BATCH_BYTES, BATCH_ROWS

Row: TypeAlias = dict[str, Any]

# One column's name, or several.
Columns = Annotated[
    list[str],
    BeforeValidator(
        lambda value: [value] if isinstance(value, str) else value,
        json_schema_input_type=str | list[str],
    ),
]

MAX_POSITION = 2**63 - 1
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DAY_ZERO = date(1970, 1, 1)
_MICROSECOND = timedelta(microseconds=1)
_SCALARS = (bool, int, float, str, datetime, bytes, type(None))


@dataclass(frozen=True)
class Kind:
    """How values of a cursor and positions on a stream go into each other.

    Attributes:
        name: In messages.
        position: Value -> whole number from 0.
        value: Position -> the least value that has it.
        steps: Whether values lie between those of two positions, as they do where a
            database counts time finer than microseconds.
    """

    name: str
    position: Callable[[Any], int]
    value: Callable[[int], Any]
    steps: bool = False


def _whole(value: Any) -> int:
    if value != int(value):
        raise ValueError("it is not a whole number")
    return int(value)


def utc(value: datetime) -> datetime:
    """The same time in UTC; a time without a zone is taken to be in UTC."""
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


INTEGERS = Kind("integer", _whole, lambda position: position)
DATES = Kind("date", lambda day: (day - _DAY_ZERO).days, lambda days: _DAY_ZERO + timedelta(days))
ZONED_TIMES = Kind(
    "timestamp",
    lambda time: (utc(time) - _EPOCH) // _MICROSECOND,
    lambda position: _EPOCH + position * _MICROSECOND,
    steps=True,
)
PLAIN_TIMES = Kind(
    "timestamp",
    ZONED_TIMES.position,
    lambda position: ZONED_TIMES.value(position).replace(tzinfo=None),
    steps=True,
)


def kind_of(value: Any, column: str, label: str) -> Kind:
    """How a cursor's positions are counted, going by one of its values.

    Raises:
        SourceError: Values of this type do not grow in a way that can be counted.
    """
    if isinstance(value, datetime):
        return PLAIN_TIMES if value.tzinfo is None else ZONED_TIMES
    if isinstance(value, date):
        return DATES
    if type(value) is int or isinstance(value, Decimal):
        return INTEGERS
    raise SourceError(
        f"{label}: cursor {column!r} holds {type(value).__name__} {str(value)[:60]!r}. "
        "Valid: an integer, a timestamp or a date.",
        "Name another column as `cursor`, or convert this one in a `query`.",
    )


def position_of(kind: Kind, value: Any, column: str, label: str) -> int:
    """Where a row with this cursor value stands.

    Raises:
        SourceError: The value has no position: another type, negative, or too large.
    """
    try:
        position = kind.position(value)
    except (TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise SourceError(
            f"{label}: cursor {column!r} holds {str(value)[:60]!r} among values of type "
            f"{kind.name}: {error}.",
            "A cursor needs values of one type; convert the column, or name another one.",
        ) from error
    if not 0 <= position <= MAX_POSITION:
        raise SourceError(
            f"{label}: cursor {column!r} holds {str(value)[:60]!r}. Valid: from 0, or from "
            "1970, up to 2^63 - 1.",
            "Leave such rows out in a `query`, or name another column as `cursor`.",
        )
    return position


def unsettled(kind: Kind, settle_s: float) -> int | None:
    """The position from which on nothing counts yet, by this machine's clock; None if all does.

    Args:
        kind: Of the cursor; only times and dates settle.
        settle_s: How old a time must be to count.
    """
    if kind is INTEGERS:
        return None
    time = datetime.now(UTC) - timedelta(seconds=settle_s)
    return kind.position(time.date() if kind is DATES else time)


def plain(value: Any) -> Any:
    """A database's value as one that ``ColumnTypes`` knows.

    Numbers with a fixed point become floats, and what has no type of its own here,
    such as a UUID or a time of day, becomes text.
    """
    if isinstance(value, datetime):
        return utc(value)
    if type(value) is date or isinstance(value, _SCALARS):
        return value
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    return str(value)


def as_text(row: Any) -> str:
    """A row's or a key's values as one text, the same for the same values."""
    return json.dumps(row, default=repr, separators=(",", ":"))


def batched(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Rows in lists of about ``BATCH_ROWS`` or ``BATCH_BYTES``, whichever is less."""
    batch: list[Row] = []
    num_bytes = 0
    for row in rows:
        batch.append(row)
        num_bytes += sum(_weight(value) for value in row.values())
        if len(batch) >= BATCH_ROWS or num_bytes >= BATCH_BYTES:
            yield batch
            batch, num_bytes = [], 0
    if batch:
        yield batch


def _weight(value: Any) -> int:
    """About how many bytes a value takes; nested ones are few and counted by their text."""
    if isinstance(value, str | bytes):
        return len(value)
    return len(repr(value)) if isinstance(value, dict | list) else 8


def pieces(
    rows: Iterable[Row], label: str, kinds: Mapping[str, type] | None = None
) -> Iterator[Piece]:
    """Rows of a unit that has a stream of its own, numbered from 1.

    Args:
        rows: In any order.
        label: The unit's, for messages and origins.
        kinds: Of the columns whose type is known beforehand.
    """
    columns = ColumnTypes(label, kinds)
    start = 1
    for batch in batched(rows):
        made, letters = columns.batch(batch, range(start, start + len(batch)))
        start += len(batch)
        yield from letters
        if made is not None:
            yield made


class _Placed(NamedTuple):
    """Where one row stands: for a person, on its stream, and among those that stand there."""

    origin: str
    position: int
    name: str


class KeyedRows:
    """Rows along a cursor -> batches in which each says where it stands and what it is called.

    Args:
        label: The unit's, for messages and origins.
        cursor: The column that grows.
        key: Columns that tell rows of one cursor value apart; without any, their
            content does, and equal rows are counted.
        kinds: Of the columns whose type is known beforehand.
    """

    def __init__(
        self,
        label: str,
        cursor: str,
        key: Sequence[str],
        kinds: Mapping[str, type] | None = None,
    ) -> None:
        self._label = label
        self._cursor = cursor
        self._key = key
        self._columns = ColumnTypes(label, kinds, on_stream=True)
        self._position = -1
        self._num_tied = 0
        self._seen: Counter[str] = Counter()
        self._last = ""

    def pieces(self, rows: Iterable[Row], position: Callable[[Row], int]) -> Iterator[Piece]:
        """Batches and dead letters of rows that come in the order of their positions.

        Args:
            rows: In the order of the cursor, and with equal values in that of the key.
            position: Where a row stands.
        """
        for batch in batched(rows):
            yield from self._typed(batch, [self._placed(row, position(row)) for row in batch])

    def _typed(self, batch: list[Row], placed: list[_Placed]) -> Iterator[Piece]:
        # Rows go by their number in the batch: two may read alike to a person.
        made, letters = self._columns.batch(batch, range(len(batch)))
        for letter in letters:
            assert letter.offset is not None, "letters of a stream have an offset"
            row = placed[letter.offset]
            yield DeadLetter(row.origin, letter.reason, letter.excerpt, row.position)
        if made is not None:
            yield _with_places(made, [placed[number] for number in made[OFFSET].to_pylist()])

    def _placed(self, row: Row, position: int) -> _Placed:
        name = self._name(row, position)
        return _Placed(f"{self._label}:{self._place(row)}", position, name)

    def _name(self, row: Row, position: int) -> str:
        """What the row is called on its stream.

        Raises:
            SourceError: The key columns do not tell it from the row before.
        """
        if position != self._position:
            self._position, self._num_tied = position, 0
            self._seen.clear()
        self._num_tied += 1
        if not self._key:
            content = blake2b(as_text(row).encode(), digest_size=16).hexdigest()
            self._seen[content] += 1
            return f"{position}/{content}/{self._seen[content]}"
        name = as_text([position, *(row[column] for column in self._key)])
        if name == self._last:
            raise SourceError(
                f"{self._label}: two rows have the same {' and '.join(self._key)}: "
                f"{self._values(row, self._key)}.",
                "Name columns as `key` that no two rows share, or leave `key` out.",
            )
        self._last = name
        return name

    def _place(self, row: Row) -> str:
        """Where a person would look for the row."""
        place = self._values(row, dict.fromkeys([self._cursor, *self._key]))
        return place if self._key else f"{place}#{self._num_tied}"

    def _values(self, row: Row, columns: Iterable[str]) -> str:
        return ",".join(f"{column}={_shown(row[column])}" for column in columns)


def _with_places(batch: pa.RecordBatch, placed: Sequence[_Placed]) -> pa.RecordBatch:
    """The batch with where its rows stand, in place of their numbers."""
    found = {
        ORIGIN: pa.array([row.origin for row in placed], pa.string()),
        OFFSET: pa.array([row.position for row in placed], pa.int64()),
    }
    for name, column in found.items():
        batch = batch.set_column(batch.schema.get_field_index(name), name, column)
    return batch.append_column(ROW_KEY, pa.array([row.name for row in placed], pa.string()))


def _shown(value: Any) -> str:
    """A value for a person to read: text as it is, unless it could be taken for something else."""
    if isinstance(value, datetime | date):
        return value.isoformat()
    return json.dumps(value) if isinstance(value, str) and _is_odd(value) else str(value)


def _is_odd(text: str) -> bool:
    """Whether text reads like a number or a constant, or cannot be written."""
    try:
        text.encode()
        float(text)
    except UnicodeEncodeError:
        return True
    except ValueError:
        return text in ("None", "True", "False")
    return True
