"""How a pointer moves: only from what was expected."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from penstock.ledger import schema
from penstock.ledger.records import Pointer


def compare_and_set(
    connection: sa.Connection,
    name: str,
    alias: str,
    version: int,
    expected: Pointer | None,
    epoch: int,
) -> bool:
    """Point an alias at a version, if it is what was expected; returns whether it was."""
    if expected is None:
        try:
            with connection.begin_nested():
                connection.execute(
                    sa.insert(schema.pointers).values(
                        name=name, alias=alias, version=version, epoch=epoch
                    )
                )
        except IntegrityError:
            return False
        return True
    changed = connection.execute(
        sa.update(schema.pointers)
        .where(
            schema.pointers.c.name == name,
            schema.pointers.c.alias == alias,
            schema.pointers.c.version == expected.version,
            schema.pointers.c.epoch == expected.epoch,
        )
        .values(version=version, epoch=epoch)
    )
    return changed.rowcount == 1
