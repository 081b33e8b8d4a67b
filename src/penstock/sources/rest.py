"""REST APIs: rows from pages of JSON, kept on disk from the pin to the commit.

What an API answers can change between two requests, so what is pinned is what was
fetched: snapshot() writes the rows to a file beside the recipe, and read() takes them
from there. If the file is gone, as on another host, the same question is asked again.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from penstock.errors import SourceError, SourceUnavailable
from penstock.sources import cursors
from penstock.sources.base import AnyOptions, DeadLetter, Options, Piece, Place, Unit
from penstock.sources.columns import printable
from penstock.sources.cursors import Columns, Kind, Row
from penstock.sources.formats import parse_object
from penstock.sources.http_pages import Auth, Endpoint, Paginator, pages

# A run that has not continued for so long will ask again.
ABANDONED_S = 7 * 24 * 3600.0
_KINDS = {"integer": cursors.INTEGERS, "time": cursors.ZONED_TIMES, "date": cursors.DATES}


class RestOptions(Options):
    """Which rows of which API."""

    base_url: Annotated[str, Place()] = Field(
        pattern=r"^https?://[^/@?#]+[^@?#]*$", description="Of the API, without credentials."
    )
    path: str = Field("", description="Of the rows, below `base_url`.")
    params: dict[str, str | int | bool] = Field(
        default_factory=dict, description="Of every request."
    )
    headers: Annotated[dict[str, str], Place()] = Field(
        default_factory=dict, description="Of every request; secrets as ${VAR}."
    )
    auth: Annotated[Auth | None, Place()] = Field(None, description="Who asks.")
    data_selector: str = Field("$", description="JSONPath of the list of rows in an answer.")
    paginator: Paginator = Field("single", description="How the next page is found.")
    paginator_options: dict[str, str | int | bool | None] = Field(
        default_factory=dict, description="Arguments of dlt's paginator of that kind."
    )
    cursor: str | None = Field(None, description="Field that grows; null takes all rows.")
    cursor_type: Literal["time", "date", "integer"] = Field(
        "time", description="What the cursor holds: ISO 8601 text, or a whole number."
    )
    cursor_param: str | None = Field(
        None, description="Parameter that asks for rows from a cursor value on."
    )
    key: Columns = Field(
        default_factory=list,
        description="Fields that tell rows with the same cursor apart; needed with `cursor`.",
    )
    null_cursor: Literal["refuse", "leave_out"] = Field(
        "refuse", description="What to do about rows without a cursor."
    )
    settle_s: Annotated[float, Place()] = Field(
        5.0, ge=0, description="How old a time in the cursor must be to count."
    )
    timeout_s: Annotated[float, Place()] = Field(
        60.0, gt=0, description="For an answer to begin, and to go on."
    )
    attempts: Annotated[int, Place()] = Field(
        5, ge=1, description="At one page, when it gets HTTP 429 or 5xx, half an answer or none."
    )
    max_wait_s: Annotated[float, Place()] = Field(
        60.0, ge=0, description="Longest pause between attempts, whatever Retry-After asks for."
    )
    max_pages: Annotated[int, Place()] = Field(100_000, ge=1, description="More are a loop.")
    spool: Annotated[str, Place()] = Field(
        ".penstock/pages", description="Folder for fetched rows, relative to the recipe."
    )

    @model_validator(mode="after")
    def _cursor_has_a_key(self) -> RestOptions:
        if self.cursor is not None and not self.key:
            raise ValueError("`cursor` needs a `key`")
        if self.cursor is None and self.cursor_param is not None:
            raise ValueError("`cursor_param` needs a `cursor`")
        return self


class RestSource:
    """Rows of one endpoint of an HTTP API."""

    Options: ClassVar[AnyOptions] = RestOptions

    def __init__(self, options: RestOptions, folder: Path) -> None:
        self._options = options
        self._label = options.path.strip("/") or "rows"
        self._kind = _KINDS[options.cursor_type]
        self._pinned: Unit | None = None
        self._spool = _Spool(folder / options.spool, self._identity())

    def recall(self, units: Sequence[Unit]) -> None:
        """Take note of what was pinned before, to ask only for what came after it."""
        mine = [unit for unit in units if unit.stream == self._stream()]
        self._pinned = mine[-1] if mine else None

    def snapshot(self) -> tuple[Unit, ...]:
        """Fetch what is new, or everything, and pin that."""
        self._spool.sweep()
        if self._options.cursor is None:
            digest = self._spool.keep(self._fetch(-1), lambda digest: digest)
            if digest == hashlib.sha256().hexdigest():
                raise SourceUnavailable(
                    f"There is nothing at {self._label}: 0 rows.", "Check `params`."
                )
            return (Unit(f"sha256:{digest}", 1, self._label),)
        since = -1 if self._pinned is None else self._pinned.position
        window = _Window(self, since)
        self._spool.keep(window.passing(self._fetch(since)), lambda _: f"{since}-{window.newest}")
        if window.newest > since:
            return (Unit(self._stream(), window.newest, self._label),)
        return () if self._pinned is None else (Unit(self._stream(), since, self._label),)

    def read(self, unit: Unit) -> Iterator[Piece]:
        """Yield what was pinned, from disk, or by asking again."""
        if self._options.cursor is None:
            yield from self._read_whole(unit)
            return
        path = self._spool.find(unit.after, unit.position)
        rows = self._fetch(unit.after) if path is None else _rows_of(path)
        keyed = cursors.KeyedRows(self._label, self._options.cursor, self._options.key)
        letters: list[DeadLetter] = []
        objects = _objects(self._between(rows, unit), self._label, letters, self.position)
        yield from keyed.pieces(objects, self.position)
        yield from letters

    def position(self, row: Row) -> int:
        """Where a row stands on the stream."""
        name = str(self._options.cursor)
        value = row[name]
        if self._options.cursor_type != "integer":
            value = _as_time(value, self._options.cursor_type)
        elif type(value) is not int:
            value = None
        if value is None:
            raise SourceError(
                f"{self._label}: cursor {name!r} holds {str(row[name])[:60]!r}. "
                f"Valid as {self._options.cursor_type}: {_EXAMPLES[self._options.cursor_type]}.",
                "Mend `cursor` or `cursor_type`.",
            )
        return cursors.position_of(self._kind, value, name, self._label)

    def placed(self, rows: Iterator[Any]) -> Iterator[tuple[Any, int | None]]:
        """The rows that have a cursor and a key, each with its position.

        What is no object stands nowhere, and is passed on without a position.

        Raises:
            SourceError: One lacks a key, or a cursor and such rows are to be refused.
        """
        cursor = str(self._options.cursor)
        for number, row in enumerate(rows, 1):
            if not isinstance(row, dict):
                yield row, None
            elif row.get(cursor) is not None:
                self._refuse_keyless(row)
                yield row, self.position(row)
            elif self._options.null_cursor == "refuse":
                raise SourceError(
                    f"{self._label}: row {number} has no {cursor!r}: "
                    f"{printable(cursors.as_text(row))}",
                    "Name another `cursor`, or leave such rows out: `null_cursor: leave_out`.",
                )

    def _refuse_keyless(self, row: Row) -> None:
        for name in self._options.key:
            if row.get(name) is None:
                raise SourceError(
                    f"{self._label}: a row has no {name!r}, which is its key: "
                    f"{printable(cursors.as_text(row))}",
                    "Name fields as `key` that every row has.",
                )

    def unsettled(self) -> int | None:
        """The position from which on nothing counts yet; None if all does."""
        return cursors.unsettled(self._kind, self._options.settle_s)

    def _between(self, rows: Iterator[Any], unit: Unit) -> Iterator[Any]:
        """The rows in (after, position], each once: pages shift while they are turned."""
        seen: set[int] = set()
        for row, position in self.placed(rows):
            if position is None:
                yield row
                continue
            name = hash((position, cursors.as_text([row[name] for name in self._options.key])))
            if unit.after < position <= unit.position and name not in seen:
                seen.add(name)
                yield row

    def _read_whole(self, unit: Unit) -> Iterator[Piece]:
        digest = unit.stream.removeprefix("sha256:")
        path = self._spool.path(digest)
        if not path.exists():
            found = self._spool.keep(self._fetch(-1), lambda digest: digest)
            if found != digest:
                raise SourceUnavailable(
                    f"{self._label} has changed since it was pinned.",
                    "Run again to pin it as it is now, or read it along a `cursor`.",
                )
        letters: list[DeadLetter] = []
        yield from cursors.pieces(_objects(_rows_of(path), self._label, letters), self._label)
        yield from letters

    def _fetch(self, since: int) -> Iterator[Any]:
        params: dict[str, Any] = {}
        if since >= 0 and self._options.cursor_param is not None:
            params[self._options.cursor_param] = _asked(self._kind, since)
        for page in pages(self._endpoint(), params):
            yield from page

    def _endpoint(self) -> Endpoint:
        options = self._options
        return Endpoint(
            base_url=options.base_url,
            path=options.path,
            params=options.params,
            headers=options.headers,
            auth=options.auth,
            paginator=options.paginator,
            paginator_options=options.paginator_options,
            data_selector=options.data_selector,
            timeout_s=options.timeout_s,
            attempts=options.attempts,
            max_wait_s=options.max_wait_s,
            max_pages=options.max_pages,
        )

    def _stream(self) -> str:
        return f"{self._label}/{self._options.cursor}"

    def _identity(self) -> str:
        """What is asked for, and of whom: rows of one question never pass for another's."""
        options = self._options
        asked: list[Any] = [options.base_url, options.path, options.params, options.data_selector]
        asked += [options.paginator, options.paginator_options, options.cursor, options.key]
        return hashlib.blake2b(json.dumps(asked).encode(), digest_size=8).hexdigest()


_EXAMPLES = {
    "integer": "17",
    "time": "'2026-11-24T10:00:00Z'",
    "date": "'2026-11-24'",
}


def _as_time(value: Any, type_: str) -> datetime | date | None:
    """A cursor's text as a time or date; None if it is none."""
    try:
        return date.fromisoformat(value) if type_ == "date" else datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None


def _asked(kind: Kind, since: int) -> str:
    """A position as an API is asked for it: whole seconds, and what is doubled is passed over."""
    value = kind.value(since)
    if isinstance(value, datetime):
        return value.replace(microsecond=0).isoformat().replace("+00:00", "Z")
    return value.isoformat() if isinstance(value, date) else str(value)


def _objects(
    rows: Iterator[Any],
    label: str,
    letters: list[DeadLetter],
    position: Callable[[Row], int] | None = None,
) -> Iterator[Row]:
    """The rows that would be rows as JSON Lines, too.

    Args:
        rows: As the API sent them.
        label: The unit's, for origins.
        letters: Where to put one for each that is no object, or holds NaN or an infinity.
        position: Where an object stands, if they stand anywhere.
    """
    for number, row in enumerate(rows, 1):
        try:
            yield parse_object(json.dumps(row).encode())
        except ValueError as error:
            offset = position(row) if position is not None and isinstance(row, dict) else None
            text = printable(json.dumps(row, ensure_ascii=False))
            letters.append(DeadLetter(f"{label}:row {number}", str(error), text, offset))


class _Window:
    """Rows that pass by, and the newest settled position among them."""

    def __init__(self, source: RestSource, since: int) -> None:
        self._source = source
        self._since = since
        self._settled = source.unsettled()
        self.newest = since

    def passing(self, rows: Iterator[Any]) -> Iterator[Any]:
        """The rows beyond where the window begins that count by now, and what is no object."""
        for row, position in self._source.placed(rows):
            if position is None:
                yield row
            elif position > self._since and (self._settled is None or position < self._settled):
                self.newest = max(self.newest, position)
                yield row


class _Spool:
    """Fetched rows on disk, one a line, under names that say what they are."""

    def __init__(self, folder: Path, prefix: str) -> None:
        self._folder = folder
        self._prefix = prefix

    def path(self, name: str) -> Path:
        """Where the rows called ``name`` are, if they are kept."""
        return self._folder / f"{self._prefix}-{name}.jsonl"

    def keep(self, rows: Iterator[Any], name: Callable[[str], str]) -> str:
        """Write rows until there are no more, and only then under their name.

        Args:
            rows: As the API sent them.
            name: Called with their digest when all are there.

        Returns:
            SHA-256 over them, in their order.

        Raises:
            SourceError: The disk refuses.
        """
        digest = hashlib.sha256()
        part = self._folder / f"{self._prefix}-{os.getpid()}.part"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                for row in rows:
                    line = json.dumps(row, separators=(",", ":")).encode() + b"\n"
                    digest.update(line)
                    file.write(line)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, self.path(name(digest.hexdigest())))
        except OSError as error:
            raise SourceError(
                f"Rows cannot be kept in {self._folder}: {error.strerror}.",
                "Free space there, or name another folder as `spool`.",
            ) from error
        finally:
            part.unlink(missing_ok=True)
        return digest.hexdigest()

    def find(self, after: int, upto: int) -> Path | None:
        """Rows that reach from ``after``, or before it, to exactly ``upto``."""
        for path in sorted(self._folder.glob(f"{self._prefix}-*-{upto}.jsonl")):
            since = path.stem.removeprefix(f"{self._prefix}-").removesuffix(f"-{upto}")
            if int(since) <= after:
                return path
        return None

    def sweep(self) -> None:
        """Delete what no run has come for."""
        limit = time.time() - ABANDONED_S
        for path in self._folder.glob(f"{self._prefix}-*"):
            try:
                if path.stat().st_mtime < limit:
                    path.unlink()
            except FileNotFoundError:
                continue  # another run's sweep


def _rows_of(path: Path) -> Iterator[Any]:
    with path.open("rb") as file:
        for line in file:
            yield json.loads(line)
