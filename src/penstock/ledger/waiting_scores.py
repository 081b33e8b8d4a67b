"""Responses whose scores could not be attached yet, because their traces were not there."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import sqlalchemy as sa

from penstock.ledger import schema
from penstock.ledger.database import Database


class WaitingScores:
    """The responses that wait, of one receiver and one source of scores.

    Args:
        database: The ledger's.
        receiver: Whose traces they are.
        source: Who scored them.
    """

    def __init__(self, database: Database, receiver: str, source: str) -> None:
        self._database = database
        self._key = {"receiver": receiver, "source": source}
        table = schema.waiting_scores
        self._mine = sa.and_(table.c.receiver == receiver, table.c.source == source)

    def all(self) -> dict[str, str]:
        """Response ids, and why they wait."""
        table = schema.waiting_scores
        query = sa.select(table.c.response_id, table.c.reason).where(self._mine)
        with self._database.read() as connection:
            return {row.response_id: row.reason for row in connection.execute(query)}

    def settle(self, looked_at: Collection[str], waiting: Mapping[str, str]) -> None:
        """Note what came of some responses, in one transaction.

        Args:
            looked_at: All of them.
            waiting: Those that wait (on), and why.

        Raises:
            LedgerError: The database cannot be written.
        """
        if not looked_at:
            return
        table = schema.waiting_scores
        done = sa.delete(table).where(self._mine, table.c.response_id.in_(list(looked_at)))
        rows = [{**self._key, "response_id": name, "reason": why} for name, why in waiting.items()]
        with self._database.write() as connection:
            connection.execute(done)
            if rows:
                connection.execute(sa.insert(table), rows)
