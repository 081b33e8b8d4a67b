"""Names that others give to runs, so that what they ask for twice is done once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from penstock.ledger import schema

if TYPE_CHECKING:
    from penstock.ledger.database import Database


def take_key(connection: sa.Connection, recipe: str, key: str, run_id: str) -> str:
    """Give a run a name, unless another run has it.

    In the transaction that opens the run: whoever finds the name also finds the run.

    Returns:
        The id of the run that has the name.
    """
    found = _holder(connection, recipe, key)
    if found is not None:
        return found
    try:
        with connection.begin_nested():
            connection.execute(
                sa.insert(schema.run_keys).values(recipe=recipe, key=key, run_id=run_id)
            )
        return run_id
    except IntegrityError:  # PostgreSQL waited for another who was opening it
        return _holder(connection, recipe, key) or run_id


def named_run(database: Database, recipe: str, key: str) -> str | None:
    """The id of the run that has a name, or None if none has."""
    with database.read() as connection:
        return _holder(connection, recipe, key)


def named_runs(database: Database, recipe: str, names: Iterable[str]) -> dict[str, str]:
    """The ids of the runs that have some names, by name; those that none has are left out."""
    keys = schema.run_keys.c
    query = sa.select(keys.key, keys.run_id).where(keys.recipe == recipe, keys.key.in_(list(names)))
    with database.read() as connection:
        return {row.key: row.run_id for row in connection.execute(query)}


def _holder(connection: sa.Connection, recipe: str, key: str) -> str | None:
    keys = schema.run_keys.c
    query = sa.select(keys.run_id).where(keys.recipe == recipe, keys.key == key)
    return connection.scalar(query)
