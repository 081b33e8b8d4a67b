"""Claims: one worker at a time makes a result."""

from __future__ import annotations

import threading
from contextlib import suppress

import sqlalchemy as sa

from penstock.errors import LedgerError
from penstock.ledger import schema
from penstock.ledger.database import Database, clock

LEASE_S = 30.0
# Whether a process of another host lives is not known; after an hour without a
# renewal it is not waited for.
FORGOTTEN_AFTER_S = 3600.0


class Claim:
    """The right to make one result, renewed in the background while it is held.

    Use as a context manager; leaving it gives the claim back.
    """

    def __init__(self, database: Database, key: str, holder: str, lease_s: float) -> None:
        self.key = key
        self.holder = holder
        self._database = database
        self._lease_s = lease_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True, name=f"lease {key[:20]}")

    def __enter__(self) -> Claim:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        # What cannot be given back ends with its lease, and must not hide
        # the error that the block ended with.
        with suppress(LedgerError), self._database.write() as connection:
            connection.execute(
                sa.delete(schema.claims).where(
                    schema.claims.c.key == self.key, schema.claims.c.holder == self.holder
                )
            )

    def _renew(self) -> None:
        while not self._stop.wait(self._lease_s / 3):
            try:
                with self._database.write() as connection:
                    connection.execute(
                        sa.update(schema.claims)
                        .where(
                            schema.claims.c.key == self.key, schema.claims.c.holder == self.holder
                        )
                        .values(until_s=clock(connection) + self._lease_s)
                    )
            except LedgerError:
                # The database may come back before the lease ends; if it does
                # not, recording the result is refused, which is where it matters.
                continue


def holder_of(connection: sa.Connection, key: str, lock: bool = False) -> str | None:
    """Who has a claim; with ``lock``, nobody takes it over before the transaction ends."""
    query = sa.select(schema.claims.c.holder).where(schema.claims.c.key == key)
    return connection.scalar(query.with_for_update() if lock else query)
