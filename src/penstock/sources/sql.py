"""Tables and queries of any database that SQLAlchemy speaks to.

With a ``cursor`` the source is one stream that grows: each run brings the rows
whose cursor lies beyond what is committed. Without one the whole table is pinned
by a digest of its rows, and comes again as a whole when any row has changed.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import sqlalchemy as sa
from pydantic import Field, SecretStr, model_validator

from penstock.errors import MissingExtra, SourceError, SourceUnavailable
from penstock.registry import did_you_mean
from penstock.sources import cursors
from penstock.sources.base import AnyOptions, Options, Piece, Place, Unit, refuse_reserved
from penstock.sources.cursors import Columns, Kind, Row

_FETCH_ROWS = 1_000
# The form in which SQLAlchemy, and SQLite's own functions, write a time; others sort otherwise.
_SQLITE_TIME = "[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9] [0-9][0-9]:[0-9][0-9]:[0-9][0-9]*"
# How often a connection is tried for. What breaks off later is read again by the next run.
_ATTEMPTS = 4
_FIRST_PAUSE_S = 0.5
# SQLSTATE classes of what passes: connection, rollback, resources, intervention, system.
_PASSING = ("08", "40", "53", "57", "58")
# A connection that fails has no SQLSTATE; these are the words of servers that do answer.
_REFUSALS = re.compile(
    r"authentication|password|denied|pg_hba|does not exist|unknown database|not permitted", re.I
)
_REPEATABLE = {"postgresql": "REPEATABLE READ", "mysql": "REPEATABLE READ"}


class SqlOptions(Options):
    """Which rows of which database."""

    url: Annotated[str, Place()] = Field(
        description="SQLAlchemy's, such as postgresql://reader@host/shop; SQLite's file is "
        "found from the recipe's folder."
    )
    password: Annotated[SecretStr | None, Place()] = Field(
        None, description="${VAR}, so that it is never written down; null takes the URL's."
    )
    table: str | None = Field(None, description="Table or view, with its schema if need be.")
    query: str | None = Field(None, description="A SELECT in place of a table.")
    cursor: str | None = Field(
        None, description="Column that grows: an integer, a timestamp or a date."
    )
    key: Columns = Field(
        default_factory=list,
        description="Columns that tell rows with the same cursor apart; a table's default is "
        "its primary key.",
    )
    null_cursor: Literal["refuse", "leave_out"] = Field(
        "refuse", description="What to do about rows whose cursor is null."
    )
    settle_s: Annotated[float, Place()] = Field(
        5.0, ge=0, description="How long the longest writing transaction may take."
    )
    timeout_s: Annotated[float, Place()] = Field(10.0, gt=0, description="For connecting.")

    @model_validator(mode="after")
    def _one_of_two(self) -> SqlOptions:
        if (self.table is None) == (self.query is None):
            raise ValueError("needs either `table` or `query`")
        return self


class SqlSource:
    """Rows of one table or query."""

    Options: ClassVar[AnyOptions] = SqlOptions

    def __init__(self, options: SqlOptions, folder: Path) -> None:
        self._options = options
        self._folder = folder
        self._label = options.table or "query"

    def snapshot(self) -> tuple[Unit, ...]:
        """Pin how far the cursor stands, or the digest of all rows."""
        with self._database() as database:
            rows = self._rows(database)
            if self._options.cursor is None:
                return (self._pin_whole(rows),)
            position = rows.settled_position(self._options.settle_s)
        return () if position is None else (Unit(self._stream(), position, self._label),)

    def read(self, unit: Unit) -> Iterator[Piece]:
        """Yield the rows beyond ``unit.after`` up to the unit's position, or all."""
        with self._database() as database:
            rows = self._rows(database)
            if self._options.cursor is None:
                yield from self._read_whole(rows, unit)
            else:
                yield from rows.between(unit.after, unit.position)

    def _pin_whole(self, rows: _Rows) -> Unit:
        digest = _Digest()
        for _ in digest.passing(rows.all()):
            pass
        if not digest.num_rows:
            raise SourceUnavailable(
                f"There is nothing in {self._label}: 0 rows.", "Check what fills it."
            )
        return Unit(digest.stream(), 1, self._label)

    def _read_whole(self, rows: _Rows, unit: Unit) -> Iterator[Piece]:
        digest = _Digest()
        yield from cursors.pieces(digest.passing(rows.all()), self._label, rows.kinds)
        if digest.stream() != unit.stream:
            raise SourceUnavailable(
                f"{self._label} has changed since it was pinned.",
                "Run again to pin it as it is now; a table that changes often needs a `cursor`.",
            )

    def _stream(self) -> str:
        """The stream's name: what is read and along which column, wherever the database is."""
        options = self._options
        what = options.table or f"query {hashlib.sha256(str(options.query).encode()).hexdigest()}"
        return f"{what}/{options.cursor}"

    def _rows(self, database: sa.Connection) -> _Rows:
        options = self._options
        rows = _from_table(database, options) if options.table else _from_query(database, options)
        names = [str(column.name) for column in rows.columns]
        refuse_reserved(names, self._label)
        key = options.key or [str(column.name) for column in rows.primary_key]
        for name in filter(None, [options.cursor, *key]):
            if name not in names:
                raise SourceError(
                    f"{self._label} has no column {name!r}.{did_you_mean(name, names)}",
                    "Mend `cursor` or `key` in the recipe.",
                )
        return _Rows(database, rows, options, key, self._label)

    @contextmanager
    def _database(self) -> Iterator[sa.Connection]:
        """A connection whose every statement sees the same rows, where the database can.

        Raises:
            SourceError: It refuses, or a statement is wrong.
            SourceUnavailable: It cannot be reached, or the connection broke.
        """
        url = self._url()
        try:
            engine = _engine(url, self._options.timeout_s)
            try:
                with _connected(engine) as connection:
                    level = _REPEATABLE.get(engine.dialect.name)
                    if level:
                        connection = connection.execution_options(isolation_level=level)
                    yield connection
            finally:
                engine.dispose()
        except sa.exc.NoSuchModuleError as error:
            raise SourceError(
                f"url: no database is known as {url.drivername!r}.",
                "Write it as dialect+driver://user@host/database; install what it needs.",
            ) from error
        except ModuleNotFoundError as error:
            if url.get_backend_name() == "postgresql":
                raise MissingExtra("psycopg", "postgres") from error
            raise SourceError(
                f"The driver {error.name!r} for {url.drivername} is not installed.",
                f"Install it with: pip install {error.name}",
            ) from error
        except (sa.exc.SQLAlchemyError, OverflowError, UnicodeDecodeError) as error:
            raise self._failure(error, url) from error

    def _url(self) -> sa.URL:
        try:
            url = sa.make_url(self._options.url)
        except sa.exc.ArgumentError as error:
            raise SourceError(
                "url is not a database's address.",
                "Write it as dialect+driver://user@host/database.",
            ) from error
        if self._options.password is not None:
            url = url.set(password=self._options.password.get_secret_value())
        if url.get_backend_name() == "sqlite":
            url = url.set(database=str(self._file(url.database or "")))
        return url

    def _file(self, name: str) -> Path:
        path = self._folder / name
        if not path.is_file():
            raise SourceError(
                f"There is no SQLite file {name!r} in {path.parent}.",
                "Its path is relative to the recipe's folder.",
            )
        return path

    def _failure(self, error: Exception, url: sa.URL) -> SourceError:
        """The database's own first sentence, without the password should it hold it."""
        text = (str(getattr(error, "orig", None) or error).strip() or type(error).__name__).strip()
        text = " ".join(text.split())[:400]
        for secret in filter(None, [url.password and str(url.password)]):
            text = text.replace(secret, "***")
        where = url.set(password=None, query={}).render_as_string()
        is_far = url.get_backend_name() != "sqlite"
        if is_far and isinstance(error, sa.exc.OperationalError | sa.exc.InterfaceError):
            hint = "Check that the server runs, and user and password; then run again."
        else:
            hint = "Check `table`, `query`, `cursor` and `key` in the recipe."
        kind = SourceUnavailable if _is_outage(error) else SourceError
        return kind(f"{self._label}: {where} said: {text}", hint)


class _Rows:
    """The rows that are asked for, in an order that is theirs."""

    def __init__(
        self,
        database: sa.Connection,
        rows: sa.FromClause,
        options: SqlOptions,
        key: list[str],
        label: str,
    ) -> None:
        self._database = database
        self._rows = rows
        self._options = options
        self._key = key
        self._label = label
        whole = (c.name for c in rows.columns if getattr(c.type, "scale", None) == 0)
        self._whole = {str(options.cursor), *key, *map(str, whole)}
        self.kinds = _declared_kinds(rows)

    def all(self) -> Iterator[Row]:
        """Every row, ordered by its key, or by all its columns if it has none."""
        return self._fetch(sa.select(self._rows).order_by(*self._order()))

    def between(self, after: int, upto: int) -> Iterator[Piece]:
        """The rows whose cursor lies in (after, upto]."""
        kind = self._kind()
        if kind is None:
            return
        column, name = self._cursor(kind), str(self._options.cursor)
        if kind.steps:
            window = column >= kind.value(after + 1), column < kind.value(upto + 1)
        else:
            window = column > kind.value(after), column <= kind.value(upto)
        query = sa.select(self._rows).where(*window).order_by(column, *self._order())
        keyed = cursors.KeyedRows(self._label, name, self._key, self.kinds)
        yield from keyed.pieces(
            self._fetch(query),
            lambda row: cursors.position_of(kind, _seen_as(kind, row[name]), name, self._label),
        )

    def settled_position(self, settle_s: float) -> int | None:
        """How far the cursor has come for good; None while there is nothing.

        Transactions commit in another order than they take numbers and times. A
        time is settled once it is ``settle_s`` old, by the database's clock. For
        numbers the look comes first and the wait after it: whoever was writing a
        smaller number at the look has then ended.
        """
        kind = self._kind()
        if kind is None:
            return None
        column = self._cursor(kind)
        self._refuse_unplaced(column, kind)
        query = sa.select(sa.func.max(column))
        if kind is not cursors.INTEGERS:
            settled = self._now() - timedelta(seconds=settle_s)
            query = query.where(column < _bound(kind, settled))
        newest = self._database.scalar(query)
        if kind is cursors.INTEGERS:
            time.sleep(settle_s)
        return None if newest is None else self._position(kind, newest)

    def _position(self, kind: Kind, value: Any) -> int:
        name = str(self._options.cursor)
        return cursors.position_of(kind, _seen_as(kind, value), name, self._label)

    def _kind(self) -> Kind | None:
        """Of the cursor's values; None if it has none."""
        column = self._rows.c[str(self._options.cursor)]
        query = sa.select(column).where(column.is_not(None)).limit(1)
        value = self._database.scalar(query)
        if value is None:
            self._refuse_nulls(column)
            return None
        if self._database.dialect.name == "sqlite":
            value = self._settle_sqlite(column, value)
        return cursors.kind_of(value, str(self._options.cursor), self._label)

    def _cursor(self, kind: Kind) -> Any:
        column = self._rows.c[str(self._options.cursor)]
        is_text = self._database.dialect.name == "sqlite" and kind is cursors.PLAIN_TIMES
        return sa.type_coerce(column, sa.DateTime()) if is_text else column

    def _settle_sqlite(self, column: Any, value: Any) -> Any:
        """SQLite keeps any type in any column, and times as text: see that all are of one form."""
        raw = sa.type_coerce(column, sa.String())
        if isinstance(value, int):
            strange = sa.func.typeof(column) != "integer"
        elif isinstance(value, datetime | str):
            strange = raw.op("NOT GLOB")(_SQLITE_TIME)
        else:
            return value
        example = self._database.scalar(sa.select(raw).where(column.is_not(None), strange).limit(1))
        if example is not None:
            raise SourceError(
                f"{self._label}: cursor {self._options.cursor!r} holds {str(example)[:60]!r}. "
                "Valid in SQLite: integers, or times as '2026-11-24 10:00:00'.",
                "Convert the column, or name another one as `cursor`.",
            )
        return datetime.fromisoformat(value) if isinstance(value, str) else value

    def _refuse_unplaced(self, column: Any, kind: Kind) -> None:
        """Refuse rows that have no place on the stream."""
        self._refuse_nulls(column)
        self._position(kind, self._database.scalar(sa.select(sa.func.min(column))))

    def _refuse_nulls(self, column: Any) -> None:
        if self._options.null_cursor == "leave_out":
            return
        query = sa.select(sa.func.count()).select_from(self._rows).where(column.is_(None))
        if num_null := self._database.scalar(query):
            raise SourceError(
                f"{self._label}: cursor {self._options.cursor!r} is null in {num_null} rows, "
                "which therefore stand nowhere.",
                "Fill it, name another column, or leave them out with `null_cursor: leave_out`.",
            )

    def _now(self) -> datetime:
        mysql = self._database.dialect.name in ("mysql", "mariadb")
        clock = sa.func.utc_timestamp() if mysql else sa.func.current_timestamp()
        now = self._database.scalar(sa.select(sa.type_coerce(clock, sa.DateTime())))
        assert now is not None, "a clock answers"
        return cursors.utc(now)

    def _order(self) -> list[Any]:
        return [self._rows.c[name] for name in self._key] or list(self._rows.columns)

    def _fetch(self, query: Any) -> Iterator[Row]:
        options = {"stream_results": True, "yield_per": _FETCH_ROWS}
        for row in self._database.execute(query, execution_options=options).mappings():
            yield {str(name): self._plain(str(name), value) for name, value in row.items()}

    def _plain(self, name: str, value: Any) -> Any:
        """A value that Arrow takes; whole numbers stay whole where they tell rows apart."""
        if isinstance(value, Decimal) and name in self._whole and value == value.to_integral():
            return int(value)
        return cursors.plain(value)


def _declared_kinds(rows: sa.FromClause) -> dict[str, type]:
    """The kinds of columns that say theirs, so that no first value decides on it.

    Whole numbers are left to be found: a NUMERIC may be one or not.
    """
    kinds: dict[str, type] = {}
    for column in rows.columns:
        try:
            kind = column.type.python_type
        except NotImplementedError:
            continue
        if kind in (bool, int, float, str):
            kinds[str(column.name)] = kind
    return kinds


def _seen_as(kind: Kind, value: Any) -> Any:
    """A cursor's value by its kind: queries of SQLite bring times as text."""
    return datetime.fromisoformat(value) if kind.steps and isinstance(value, str) else value


def _bound(kind: Kind, time: datetime) -> Any:
    """The least value of the cursor that is not settled at ``time``."""
    return kind.value(kind.position(time.date() if kind is cursors.DATES else time))


class _Digest:
    """SHA-256 over rows that pass by, in their order."""

    def __init__(self) -> None:
        self._sha = hashlib.sha256()
        self.num_rows = 0

    def passing(self, rows: Iterator[Row]) -> Iterator[Row]:
        """The same rows, counted in."""
        for row in rows:
            self._sha.update(cursors.as_text(row).encode() + b"\n")
            self.num_rows += 1
            yield row

    def stream(self) -> str:
        """The name of the stream that holds exactly these rows."""
        return f"sha256:{self._sha.hexdigest()}"


def _from_table(database: sa.Connection, options: SqlOptions) -> Any:
    """The table as it is described in the database.

    Raises:
        SourceError: There is no such table.
    """
    schema, _, name = str(options.table).rpartition(".")
    try:
        return sa.Table(name, sa.MetaData(), schema=schema or None, autoload_with=database)
    except sa.exc.NoSuchTableError:
        inspector = sa.inspect(database)
        names = inspector.get_table_names(schema or None) + inspector.get_view_names(schema or None)
        raise SourceError(
            f"There is no table {options.table!r}.{did_you_mean(name, sorted(names)[:50])}",
            "Mend `table` in the recipe, or let its user see it.",
        ) from None


def _from_query(database: sa.Connection, options: SqlOptions) -> Any:
    """The query as a table of its own."""
    # A colon would begin a parameter.
    text = str(options.query).strip().rstrip(";").replace(":", "\\:")
    names = database.execute(sa.text(f"SELECT * FROM ({text}) AS q WHERE 1 = 0")).keys()  # noqa: S608
    if len(set(names)) < len(names):
        raise SourceError(
            f"query names a column twice: {', '.join(names)}.", "Give each column a name: AS."
        )
    return sa.text(text).columns(*[sa.column(name) for name in names]).subquery("q")


def _engine(url: sa.URL, timeout_s: float) -> sa.Engine:
    """An engine for one connection."""
    arguments: Mapping[str, Any] = {}
    if url.get_backend_name() in ("postgresql", "mysql", "mariadb"):
        arguments = {"connect_timeout": max(1, round(timeout_s))}
    engine = sa.create_engine(url, poolclass=sa.NullPool, connect_args=dict(arguments))
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine, "connect", _keep_broken_text)
    return engine


def _connected(engine: sa.Engine) -> sa.Connection:
    """A connection, tried for again while the server does not answer."""
    for attempt in range(_ATTEMPTS - 1):
        try:
            return engine.connect()
        except sa.exc.DBAPIError as error:
            if not _is_outage(error):
                raise
        time.sleep(_FIRST_PAUSE_S * 2**attempt)
    return engine.connect()


def _is_outage(error: Exception) -> bool:
    """Whether waiting can help: the database is away, starting, or too busy."""
    if not isinstance(error, sa.exc.DBAPIError):
        return False
    if error.connection_invalidated:
        return True
    code = getattr(error.orig, "sqlite_errorname", None)
    if code is not None:
        return code in ("SQLITE_BUSY", "SQLITE_LOCKED")
    state = getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None)
    if state is not None:
        return str(state).startswith(_PASSING)
    is_connecting = error.statement is None and isinstance(
        error, sa.exc.OperationalError | sa.exc.InterfaceError
    )
    return is_connecting and not _REFUSALS.search(str(error.orig))


def _keep_broken_text(connection: Any, _: Any) -> None:
    """Let text that is not UTF-8 through: one such cell costs its row, not the table."""
    connection.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
