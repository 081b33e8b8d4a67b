"""What people decided about rows in quarantine: the table that says so, and its audit.

A decision is about one row under one contract, and the latest one stands. A
released row goes on as if it had met the contract; a dropped one stays out and
no longer counts against ``max_bad_rows``. Decisions are only ever appended, so
the table is also the record of who decided what, when and why.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from penstock.artifacts import digest_of
from penstock.recipe import Recipe
from penstock.store import Store
from penstock.tables import ROW, VERSION, Position, Table, numbered
from penstock.transforms.base import ROW_ID, SOURCE

DECISIONS = "decisions"
Action = Literal["release", "drop"]

_STREAM = "decisions"
_SCHEMA = pa.schema(
    [
        (ROW_ID, pa.string()),
        (SOURCE, pa.string()),
        ("contract", pa.string()),
        ("action", pa.string()),
        ("by", pa.string()),
        ("reason", pa.string()),
        ("at_s", pa.float64()),
        (VERSION, pa.int64()),
        (ROW, pa.int64()),
    ]
)


@dataclass(frozen=True)
class Decision:
    """What was decided about one row.

    Attributes:
        row_id: The row's id.
        source: The source it came from.
        contract: The contract it broke, by the name of that contract's table.
        action: ``release`` or ``drop``.
        by: Who decided.
        reason: Why, in their words.
        at_s: When, in seconds since 1970.
    """

    row_id: str
    source: str
    contract: str
    action: str
    by: str
    reason: str
    at_s: float


def table(store: Store, recipe: Recipe) -> Table:
    """The recipe's decisions."""
    return store.table(recipe.name, DECISIONS)


def append(
    decisions: Table, rows: Sequence[Mapping[str, str]], action: Action, by: str, reason: str
) -> None:
    """Record one decision about each of ``rows``, all or none.

    Args:
        decisions: The table; the caller holds the claim on it.
        rows: With ``row_id``, ``source`` and ``contract``.
        action: What is decided.
        by: Who decides.
        reason: Why.
    """
    columns = {
        ROW_ID: [row["row_id"] for row in rows],
        SOURCE: [row["source"] for row in rows],
        "contract": [row["contract"] for row in rows],
        "action": [action] * len(rows),
        "by": [by] * len(rows),
        "reason": [reason] * len(rows),
        "at_s": [time.time()] * len(rows),
    }

    def batches(version: int) -> Iterator[pa.RecordBatch]:
        batch = pa.RecordBatch.from_pydict(columns, schema=pa.schema(list(_SCHEMA)[:7]))
        return numbered([batch], version, _SCHEMA)

    position = Position(_STREAM, decisions.position(_STREAM) + 1)
    decisions.append_once(position, _SCHEMA, batches)


def standing(
    decisions: Table, contracts: Sequence[str], upto: int | None = None
) -> dict[str, Decision]:
    """Row id -> the latest decision about it under one of ``contracts``.

    Args:
        decisions: The table.
        contracts: Those that are in force.
        upto: The version of the table to read; None is the newest.
    """
    out: dict[str, Decision] = {}
    for batch in decisions.scan(upto=upto):
        for row in batch.to_pylist():
            if row["contract"] in contracts:
                out[row[ROW_ID]] = Decision(
                    row_id=row[ROW_ID],
                    source=row[SOURCE],
                    **{name: row[name] for name in _SCHEMA.names[2:7]},
                )
    return out


def released(decided: Mapping[str, Decision], source: str | None = None) -> list[str]:
    """Ids of the rows that were let through, sorted."""
    chosen = (one for one in decided.values() if source in (None, one.source))
    return sorted(one.row_id for one in chosen if one.action == "release")


def digest(decided: Mapping[str, Decision]) -> str:
    """What of the decisions changes the data: nothing, or a digest of the released rows."""
    rows = released(decided)
    return digest_of(rows) if rows else ""
