"""The ledger's database: SQLite or PostgreSQL, opened so that both keep the same promises."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from penstock.errors import LedgerError
from penstock.ledger import schema


class Database:
    """The ledger's tables in one database.

    Args:
        url: A SQLAlchemy URL: ``sqlite:///path`` or ``postgresql://...``.

    Raises:
        LedgerError: The database cannot be opened.
    """

    def __init__(self, url: str) -> None:
        self.engine = _engine(url)
        try:
            if set(schema.metadata.tables) - set(sa.inspect(self.engine).get_table_names()):
                self._create_tables()
        except SQLAlchemyError as error:
            shown = self.engine.url.render_as_string(hide_password=True)
            raise LedgerError(
                f"The ledger {shown} cannot be opened: {_first_line(error)}",
                "Check `ledger` in the recipe, and that the database is up.",
            ) from error

    def _create_tables(self) -> None:
        """Make the tables, one process at a time: SQLite by its write lock."""
        with self.engine.connect() as connection:
            connection = connection.execution_options(penstock_writes=True)
            with connection.begin():
                if connection.dialect.name == "postgresql":
                    connection.execute(sa.text("SELECT pg_advisory_xact_lock(7361723301)"))
                schema.metadata.create_all(connection)

    def close(self) -> None:
        """Give back every connection."""
        self.engine.dispose()

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A transaction that only reads."""
        try:
            with self.engine.connect() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise LedgerError(
                f"The ledger cannot be read: {_first_line(error)}",
                "Check that the database is up, and `ledger` in the recipe.",
            ) from error

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """A transaction that writes, committed when the block ends well."""
        try:
            with self.engine.connect() as connection:
                connection = connection.execution_options(penstock_writes=True)
                with connection.begin():
                    yield connection
        except SQLAlchemyError as error:
            raise LedgerError(
                f"The ledger cannot be written: {_first_line(error)}",
                "Free some disk space or check the database; nothing was half written.",
            ) from error


def _engine(url: str) -> sa.Engine:
    hint = "Use sqlite:///FILE or postgresql://USER@HOST/NAME."
    try:
        address = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError):
        # Without its cause, which may hold the address with its password.
        raise LedgerError("The ledger's address is not a database URL.", hint) from None
    if address.get_backend_name() not in {"sqlite", "postgresql"}:
        received = address.get_backend_name()
        raise LedgerError(f"The ledger cannot be a {received!r} database.", hint)
    try:
        engine = sa.create_engine(address, pool_pre_ping=True)
    except sa.exc.SQLAlchemyError as error:
        raise LedgerError(
            f"The ledger's address is not usable: {_first_line(error)}", hint
        ) from error
    except ModuleNotFoundError as error:
        raise LedgerError(
            f"The ledger needs {error.name}.", 'Install it with: pip install "penstock[postgres]"'
        ) from error
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine, "connect", _sqlite_connect)
        sa.event.listen(engine, "begin", _sqlite_begin)
    return engine


def _sqlite_connect(connection: Any, _record: Any) -> None:
    # The driver's own transaction handling begins too late for compare-and-set;
    # _sqlite_begin does it. WAL lets readers read while one process writes.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA busy_timeout = 30000")
    _use_wal(cursor)
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.close()


def _use_wal(cursor: Any) -> None:
    """Switch to WAL; SQLite does not wait for others who are doing so at this moment."""
    end = time.monotonic() + 30.0
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > end:
                raise
            time.sleep(0.02)


def _sqlite_begin(connection: sa.Connection) -> None:
    writes = connection.get_execution_options().get("penstock_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def clock(connection: sa.Connection) -> float:
    """The database's clock: hosts that share a ledger need not agree on the time."""
    if connection.dialect.name == "postgresql":
        return float(connection.scalar(sa.text("SELECT extract(epoch FROM clock_timestamp())")))
    return time.time()


def _first_line(error: BaseException) -> str:
    """The first line of an error: SQLAlchemy adds the statement and its values."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
