"""What a source is: something that can be pinned, then read in batches.

A source never writes. It names *units* of input; the ingest stage commits each
unit's rows and its position in one Delta transaction, which is what makes
ingest exactly-once. A file is one unit on a stream of its own (position 1);
a Kafka partition is one stream whose units end at growing offsets, and reading
one starts where the last that was committed ended (``Unit.after``).

To add a source, write one file with a class like ``Source`` below, add one
line to ``registry.BUILTIN`` (or name it in a recipe as ``"module:Object"``),
and pass ``tests/conformance/test_sources.py``. ``docs/how-to/add-a-source.md``
builds one step by step.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeAlias, runtime_checkable

import pyarrow as pa

from penstock.errors import SourceError
from penstock.section import Place, Section

__all__ = [
    "EXCERPT_CHARACTERS",
    "OFFSET",
    "ORIGIN",
    "RESERVED",
    "ROW_KEY",
    "DeadLetter",
    "Options",
    "Piece",
    "Place",
    "Recalls",
    "Source",
    "Unit",
    "refuse_reserved",
]

# Where a row came from, in words a person can follow: "data/a.jsonl:17".
# Every batch of a source carries this column beside the user's own.
ORIGIN = "_origin"

# Where a row stands along its stream, if the source itself counts rows there (int64).
# A stream that grows needs it: what is new in a unit depends on where the last one ended,
# so a row can only be known by its own place. Left out, rows are counted within the unit.
OFFSET = "_offset"

# What a row is called on its stream (string), where several rows stand at one `_offset`: no two
# rows of a stream have the same, and reading a row again gives it again.
ROW_KEY = "_row_key"

# Columns that Penstock adds, for good (the first five) or for a while.
RESERVED = (
    "_row_id",
    "_source",
    ORIGIN,
    "_version",
    "_row",
    OFFSET,
    ROW_KEY,
    "_key",
    "_ordinal",
    "_cluster",
)


class Options(Section):
    """Base of every adapter's options: frozen, and no unknown keys.

    An option that says where rather than what (a path, a host, a credential)
    is declared ``Annotated[str, Place()]`` and never enters a fingerprint.
    """


AnyOptions: TypeAlias = type[Options]


@dataclass(frozen=True)
class Unit:
    """One piece of pinned input, committed as a whole.

    Attributes:
        stream: What the position counts along, stable over runs and hosts
            (``"sha256:<digest>"`` of a file, ``"orders/3"`` of a Kafka partition).
        position: Grows along the stream; a unit at or below the committed
            position of its stream has been ingested.
        label: What to call it in messages ("data/a.jsonl").
        size_bytes: Its size, where known, for progress.
        after: The stream's position that is committed already, filled in before
            the unit is read: rows at or below it are not wanted again. A source
            whose streams have one unit each need not look at it.
        divisible: Any position between ``after`` and ``position`` is as good an end as
            ``position``, so that a long unit may be committed in parts.
    """

    stream: str
    position: int
    label: str
    size_bytes: int | None = None
    after: int = -1
    divisible: bool = False


@dataclass(frozen=True)
class DeadLetter:
    """A piece of input that could not be turned into a row.

    Attributes:
        origin: Where it stands ("data/a.jsonl:17").
        reason: Why it is not a row.
        excerpt: Its first 200 characters, for a person to look at.
        offset: Where it stands along its stream, if the source counts there.
    """

    origin: str
    reason: str
    excerpt: str = ""
    offset: int | None = None


# How much of what could not be turned into a row is kept for a person to look at.
EXCERPT_CHARACTERS = 200

# What reading yields.
Piece: TypeAlias = pa.RecordBatch | DeadLetter


class Source(Protocol):
    """A place rows come from.

    Subclasses are built as ``Class(options, folder)``: the validated options
    and the recipe's folder, against which relative paths are resolved.
    """

    Options: ClassVar[AnyOptions]

    def __init__(self, options: Any, folder: Path) -> None: ...

    def snapshot(self) -> tuple[Unit, ...]:
        """Pin what there is to read now, in the order it is to be ingested.

        Reads digests, offsets or versions, never rows; the answer enters the
        fingerprint, so the same input must give the same units.

        Raises:
            SourceError: The source cannot be reached, or there is nothing there.
        """
        ...

    def read(self, unit: Unit) -> Iterator[Piece]:
        """Yield the rows of one unit in a stable order and in bounded memory.

        Args:
            unit: One of ``snapshot()``'s, perhaps pinned by an earlier process.

        Yields:
            Batches of about 10,000 rows with the source's own columns,
            ``_origin`` (string) and, where a stream grows, ``_offset`` (int64),
            with ``_row_key`` (string) if rows share one; and a ``DeadLetter``
            for each piece of input that is not a row.

        Raises:
            SourceError: The unit is gone or is no longer what was pinned. It may
                come after batches, which are then worthless: a unit counts only
                when reading it has ended without an error.
        """
        ...


@runtime_checkable
class Recalls(Protocol):
    """A source that cannot say what it has without knowing what was pinned before.

    An API cannot be asked how far it has come, only for what is newer than this.
    """

    def recall(self, units: Sequence[Unit]) -> None:
        """Take note of what was pinned last; called before ``snapshot()``."""
        ...


@dataclass(frozen=True)
class Fate:
    """What the next run would make of a response that somebody judged.

    Attributes:
        is_taken: Whether it gives a row that is new.
        why: As what, or why not.
    """

    is_taken: bool
    why: str


@runtime_checkable
class Reviews(Protocol):
    """A source whose rows come of what people say, and who want to know what it came to."""

    def stream(self) -> str | None:
        """Names what is read, as its units do; None before there is anything."""
        ...

    def review(self, names: Sequence[str], after: int) -> Mapping[str, Fate]:
        """What the next run would make of some responses, by the rules by which rows are read.

        Args:
            names: Their ids.
            after: The position up to which the stream was ingested; -1 is nothing yet.
        """
        ...


def refuse_reserved(names: Iterable[str], label: str) -> None:
    """Check that no column of the user's carries a name of Penstock's.

    Raises:
        SourceError: One does.
    """
    for name in names:
        if name in RESERVED:
            raise SourceError(
                f"{label}: the column name {name!r} is reserved; Penstock writes it itself.",
                f"Rename the column in the file, for example to {name.lstrip('_')!r}.",
            )
