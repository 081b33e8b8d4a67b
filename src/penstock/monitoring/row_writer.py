"""Appending rows of what happens to a table, from one thread of one process."""

from __future__ import annotations

import logging
import random
import time
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from itertools import groupby
from typing import Any

import pyarrow as pa

from penstock.day_tables import DAY, DayTable
from penstock.tables import ROW, VERSION, Position, numbered

logger = logging.getLogger(__name__)

# Each commit makes a file. Now and then a day's many become few, but never all the time.
_COMMITS_PER_TIDY = 100
_TIDY_INTERVAL_S = 60.0
_EXPIRE_INTERVAL_S = 24 * 3_600.0


def pseudonym(name: str, clean: str) -> str:
    """A name that still tells apart where redaction changed it: two e-mail addresses are two."""
    if clean == name:
        return name
    return f"{clean}-{blake2b(name.encode('utf-8', 'replace'), digest_size=6).hexdigest()}"


class RowWriter:
    """One writer of a table, beside those of other processes and hosts.

    Args:
        table: Where rows go.
        schema: Of the table.
        retention_days: Older days are dropped; None keeps all.
        commits_per_tidy: How often small files are made one.
    """

    def __init__(
        self,
        table: DayTable,
        schema: pa.Schema,
        retention_days: int | None,
        commits_per_tidy: int = _COMMITS_PER_TIDY,
    ) -> None:
        self._table = table
        self._schema = schema
        self._rows_schema = pa.schema([one for one in schema if one.name not in (VERSION, ROW)])
        self._retention_days = retention_days
        self._commits_per_tidy = commits_per_tidy
        # Processes that begin together do not tidy together.
        self._until_tidy = random.randint(1, commits_per_tidy)  # noqa: S311
        self._tidied_s = -_TIDY_INTERVAL_S
        self._expired_s = -_EXPIRE_INTERVAL_S
        self._stream = f"{table.name}/{uuid.uuid4()}"
        self._number = -1

    def begin(self) -> int:
        """A number for the next rows, by which trying again commits them once."""
        self._number += 1
        return self._number

    def append(self, number: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Commit rows.

        Args:
            number: What ``begin`` gave for them.
            rows: At least one; columns by name, those left out are null.

        Raises:
            StoreError: They may not be there; try again with the same number.
        """
        days = groupby(sorted(rows, key=lambda row: row[DAY]), key=lambda row: row[DAY])
        batches = [
            pa.RecordBatch.from_pylist(list(some), schema=self._rows_schema) for _, some in days
        ]
        self._table.append(
            Position(self._stream, number),
            self._schema,
            lambda version: numbered(batches, version, self._schema),
        )
        self._until_tidy -= 1

    def tidy_if_due(self) -> None:
        """Make few files of many, and drop old days; what goes wrong is told and not raised."""
        try:
            self._compact_if_due()
            self._expire_if_due()
        except Exception as error:
            logger.warning("%s cannot be tidied now: %s", self._table.folder.url, error)

    def _compact_if_due(self) -> None:
        waited_s = time.monotonic() - self._tidied_s
        if self._until_tidy > 0 or waited_s < _TIDY_INTERVAL_S:
            return
        self._until_tidy, self._tidied_s = self._commits_per_tidy, time.monotonic()
        today = datetime.now(UTC).date()
        for day in (today - timedelta(days=1), today):
            self._table.compact(day)

    def _expire_if_due(self) -> None:
        """Each day, and at the start: days also grow old where there is no traffic."""
        waited_s = time.monotonic() - self._expired_s
        if self._retention_days is None or waited_s < _EXPIRE_INTERVAL_S:
            return
        self._expired_s = time.monotonic()
        self._table.expire(datetime.now(UTC).date() - timedelta(days=self._retention_days))
