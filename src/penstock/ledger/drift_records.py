"""What was found in each window of traffic: one result a window, whoever looked first."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from penstock.ledger import schema
from penstock.ledger.database import Database


@dataclass(frozen=True)
class DriftRecord:
    """One window's result.

    Attributes:
        recipe: Whose traffic it is.
        stream: Digest of all that makes windows comparable: the move that put the version
            into service, the embedding model, the size of windows.
        start_ms: When the window begins, Unix milliseconds.
        end_ms: When it ends.
        version: The version that served.
        found: What was found, as JSON values.
    """

    recipe: str
    stream: str
    start_ms: int
    end_ms: int
    version: int
    found: Mapping[str, Any]


class DriftRecords:
    """The table of windows.

    Args:
        database: The ledger's.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, record: DriftRecord) -> bool:
        """Keep a result, unless the window has one; returns whether it was kept.

        Raises:
            LedgerError: The database cannot be written.
        """
        values = vars(record) | {"found": json.dumps(record.found, sort_keys=True)}
        with self._database.write() as connection:
            try:
                with connection.begin_nested():
                    connection.execute(sa.insert(schema.drift_windows).values(**values))
            except IntegrityError:
                return False
        return True

    def looked_until_ms(self, recipe: str) -> int | None:
        """When the newest window ended that was looked at, Unix milliseconds."""
        table = schema.drift_windows
        query = sa.select(sa.func.max(table.c.end_ms)).where(table.c.recipe == recipe)
        with self._database.read() as connection:
            until_ms: int | None = connection.scalar(query)
        return until_ms

    def of(self, recipe: str, stream: str, upto: int | None = None) -> list[DriftRecord]:
        """Results of a stream, oldest first; all, or the first so many."""
        table = schema.drift_windows
        query = (
            sa.select(table)
            .where(table.c.recipe == recipe, table.c.stream == stream)
            .order_by(table.c.start_ms)
            .limit(upto)
        )
        with self._database.read() as connection:
            rows = connection.execute(query).mappings().all()
        return [DriftRecord(**{**row, "found": json.loads(row["found"])}) for row in rows]

    def standing(self, recipe: str, stream: str) -> tuple[int, int | None]:
        """How many results a stream has, and when the last window begins, Unix milliseconds."""
        table = schema.drift_windows
        query = sa.select(sa.func.count(), sa.func.max(table.c.start_ms)).where(
            table.c.recipe == recipe, table.c.stream == stream
        )
        with self._database.read() as connection:
            row = connection.execute(query).one()
        return row[0], row[1]
