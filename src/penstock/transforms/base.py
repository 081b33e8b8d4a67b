"""What a transform is: a pure function from Arrow table to Arrow table.

Three kinds, told apart by what they must see at once:

- ``RowTransform``: each row by itself (clean, filter). However the rows are cut
  into batches, the same rows come out.
- ``KeyedTransform``: all rows that share a key (exact dedupe). ``key`` gives
  each row's key; ``keep`` is called with the rows of whole groups.
- ``ClusteredTransform``: each row and the rows it resembles, which no one key
  brings together (near-duplicates). It takes a sketch of each row, says in which
  buckets rows may meet that resemble each other, judges the pairs that met, and
  is a row transform of rows that carry the judgement.

A transform never drops a row silently: it returns the rows that stay, in their
order, and a table with one ledger row (row id, step, reason, evidence) for each
that does not. Its output has the same columns for every batch, an empty one
included: that is how an engine learns its schema.

A transform is built as ``Class(options)`` and must survive pickling, since an
engine may run it in other processes. To add one, write one file with a class
like those below, add one line to ``registry.BUILTIN`` (or name it in a recipe as
``"module:Object"``), and pass ``tests/conformance/test_transforms.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from penstock.errors import RecipeError
from penstock.registry import did_you_mean
from penstock.sources.base import AnyOptions

# The columns Penstock adds to a user's rows, in this order.
ROW_ID = "_row_id"  # string, 32 hex digits: stable over runs, hosts and re-reads
SOURCE = "_source"  # string: the source's name in the recipe
ORIGIN = "_origin"  # string: where the row stands in the source
VERSION = "_version"  # int64: the raw table's version that brought the row

# A column that is there only while rows are grouped.
KEY = "_key"

# A clustered transform's sketches: one row for each row, in this order.
EQUAL = "_equal"  # binary: rows in which it is equal are the same; null is like no other
BUCKETS = "_buckets"  # list<int64>: rows with a bucket in common may resemble each other
SKETCH = "_sketch"  # what the judge compares

# What a judge found out about a row, while its transform acts on it.
LIKE = "_like"  # string: the id of the earlier row it belongs to; null for none
SIMILARITY = "_similarity"  # float64: to that row's group, 0 to 1
ALSO = "_also"  # string: the id of a second one; null for none

REMOVED_SCHEMA = pa.schema(
    [
        (ROW_ID, pa.string()),
        ("step", pa.string()),
        ("reason", pa.string()),
        ("evidence", pa.string()),
    ]
)


@dataclass(frozen=True)
class Outcome:
    """What a transform made of some rows.

    Attributes:
        kept: The rows that go on, in their order.
        removed: One row of ``REMOVED_SCHEMA`` for each row that does not.
    """

    kept: pa.Table
    removed: pa.Table


def removed_rows(row_ids: pa.ChunkedArray, step: str, reason: str, evidence: pa.Array) -> pa.Table:
    """Build the ledger rows for rows that ``step`` removed.

    Args:
        row_ids: Shape (n,), string.
        step: The transform's name.
        reason: One phrase, the same for all n rows.
        evidence: Shape (n,), string: what shows it, row by row.
    """
    count = len(row_ids)
    columns = [row_ids, pa.repeat(step, count), pa.repeat(reason, count), evidence.cast("string")]
    return pa.table(columns, schema=REMOVED_SCHEMA)


def require_columns(schema: pa.Schema, columns: Sequence[str], step: str) -> None:
    """Check that ``step`` finds the columns it is told to work on.

    Raises:
        RecipeError: A column is missing; with the nearest spelling.
    """
    theirs = [name for name in schema.names if not name.startswith("_")]
    for column in columns:
        if column not in schema.names:
            raise RecipeError(
                f"{step}: the rows have no column {column!r}.{did_you_mean(column, theirs)}"
            )


def require_text(
    schema: pa.Schema, columns: Sequence[str], step: str, hint: str = "Leave it out of `columns`."
) -> None:
    """Check that ``step`` finds text in the columns it is told to work on.

    Raises:
        RecipeError: A column is missing, or is not text.
    """
    require_columns(schema, columns, step)
    for column in columns:
        type_ = schema.field(column).type
        if not (pa.types.is_string(type_) or pa.types.is_large_string(type_)):
            raise RecipeError(f"{step}: column {column!r} is {type_}, not text.", hint)


@runtime_checkable
class RowTransform(Protocol):
    """A transform that needs to see only one row at a time."""

    name: ClassVar[str]
    revision: ClassVar[int]  # bumped by hand when the same rows would come out otherwise
    Options: ClassVar[AnyOptions]

    def open(self) -> None:
        """Load what every batch needs (a model, a word list), once per worker."""
        ...

    def __call__(self, rows: pa.Table) -> Outcome:
        """Transform any number of rows."""
        ...


@runtime_checkable
class KeyedTransform(Protocol):
    """A transform that needs to see all rows of one key together.

    A group is then in memory as a whole, however large it is. A transform that says
    ``by_first: ClassVar[bool] = True`` needs less: what becomes of a row depends on it
    and on the first row of its key alone. It is given a large group in pieces, each
    after that first row, whose own fate is not asked again.
    """

    name: ClassVar[str]
    revision: ClassVar[int]  # bumped by hand when the same rows would come out otherwise
    Options: ClassVar[AnyOptions]

    def open(self) -> None:
        """Load what every batch needs, once per worker."""
        ...

    def key(self, rows: pa.Table) -> pa.Array:
        """Each row's key, shape (n,); rows with equal keys meet in ``keep``."""
        ...

    def keep(self, rows: pa.Table) -> Outcome:
        """Choose among rows, given in ingest order, that hold whole groups.

        The last column of ``rows`` is ``_key``; kept rows come back with every
        column they came with.
        """
        ...


@dataclass(frozen=True)
class Found:
    """What a judge found out about rows 0 to n - 1, each named by its place.

    Attributes:
        like: Shape (n,): the earlier row that a row belongs to; itself for none.
        similarity: Shape (n,): to that row's group, 0 to 1.
        also: Shape (n,): a second one; -1 for none.
    """

    like: npt.NDArray[np.int64]
    similarity: npt.NDArray[np.float32]
    also: npt.NDArray[np.int64]


class Judge(Protocol):
    """Compares rows that met in a bucket; made anew for each run of a transform."""

    def compare(
        self,
        places: npt.NDArray[np.int64],
        sketches: pa.ChunkedArray,
        candidates: Sequence[npt.NDArray[np.int64]],
        is_candidate: npt.NDArray[np.bool_],
    ) -> None:
        """Judge some rows; every row comes once at most, in ingest order.

        Args:
            places: Shape (n,): the rows' places in ingest order.
            sketches: Shape (n,).
            candidates: For each row, the earlier rows it met.
            is_candidate: Shape (n,): whether a later row has met it.
        """
        ...

    def found(self) -> Found:
        """Everything that was found out."""
        ...


@runtime_checkable
class ClusteredTransform(Protocol):
    """A transform that needs to see each row and the rows it resembles."""

    name: ClassVar[str]
    revision: ClassVar[int]  # bumped by hand when the same rows would come out otherwise
    Options: ClassVar[AnyOptions]

    def open(self) -> None:
        """Load what every batch needs, once per worker."""
        ...

    def sketch(self, rows: pa.Table) -> pa.Table:
        """A row of ``EQUAL``, ``BUCKETS`` and ``SKETCH`` for each of ``rows``."""
        ...

    def judge(self, num_rows: int) -> Judge:
        """A judge of so many rows."""
        ...

    def act(self, rows: pa.Table) -> Outcome:
        """Act on rows whose last columns are ``LIKE``, ``SIMILARITY`` and ``ALSO``.

        Those columns do not come back.
        """
        ...
