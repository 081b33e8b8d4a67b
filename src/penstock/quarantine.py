"""What validation held back: which rules, how many rows, and the rows themselves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from penstock.errors import StoreError
from penstock.pipeline import Pipeline
from penstock.stages.validate import QUARANTINE
from penstock.tables import Table
from penstock.transforms.base import ORIGIN, ROW_ID, SOURCE


@dataclass(frozen=True)
class Held:
    """The rows of one source that broke one rule.

    Attributes:
        source: Its name in the recipe.
        rule: The expectation and its arguments.
        num_rows: How many rows broke it before any other rule.
        example: The id of one of them.
    """

    source: str
    rule: str
    num_rows: int
    example: str


@dataclass(frozen=True)
class HeldRow:
    """One row in quarantine.

    Attributes:
        row_id: The row's id.
        source: The source it came from.
        origin: Where in the source, such as a file and a line.
        rule: The first rule it broke.
        value: What the rule looked at.
        row: All its columns.
    """

    row_id: str
    source: str
    origin: str
    rule: str
    value: str | None
    row: dict[str, Any]


def held(pipeline: Pipeline) -> list[Held]:
    """Rows in quarantine by source and rule, the most broken rule first."""
    counts: dict[tuple[str, str], tuple[int, str]] = {}
    for batch in _table(pipeline).scan(columns=[ROW_ID, SOURCE, "rule"]):
        for entry in batch.to_pylist():
            count, example = counts.get((entry[SOURCE], entry["rule"]), (0, entry[ROW_ID]))
            counts[entry[SOURCE], entry["rule"]] = count + 1, example
    found = [Held(*key, *value) for key, value in counts.items()]
    return sorted(found, key=lambda one: (-one.num_rows, one.source, one.rule))


def rows(pipeline: Pipeline, row_id: str = "", source: str = "", limit: int = 20) -> list[HeldRow]:
    """Rows in quarantine, in the order they came.

    Args:
        pipeline: Whose.
        row_id: The start of a row's id; empty takes all.
        source: The name of a source; empty takes all.
        limit: At most so many.

    Raises:
        StoreError: No row matches.
    """
    found = list(islice(_matching(pipeline, row_id, source), limit))
    if not found and (row_id or source):
        what = f"row {row_id!r}" if row_id else "row"
        where = f" of source {source!r}" if source else ""
        raise StoreError(
            f"There is no {what}{where} in quarantine.", "See what is: penstock quarantine list"
        )
    return found


def _matching(pipeline: Pipeline, row_id: str, source: str) -> Iterator[HeldRow]:
    for batch in _table(pipeline).scan():
        for entry in batch.to_pylist():
            if entry[ROW_ID].startswith(row_id) and source in ("", entry[SOURCE]):
                yield HeldRow(
                    row_id=entry[ROW_ID],
                    source=entry[SOURCE],
                    origin=entry[ORIGIN],
                    rule=entry["rule"],
                    value=entry["value"],
                    row=json.loads(entry["row"]),
                )


def _table(pipeline: Pipeline) -> Table:
    return Table(pipeline.store.table(pipeline.recipe.name, QUARANTINE))
