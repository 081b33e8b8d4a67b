"""What validation held back: which rules, how many rows, the rows, and what becomes of them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from penstock.errors import LedgerError, StoreError
from penstock.ledger import actor
from penstock.pipeline import Pipeline
from penstock.registry import did_you_mean
from penstock.stages import decisions
from penstock.stages.decisions import Action, Decision
from penstock.stages.validate import QUARANTINE, valid_tables
from penstock.transforms.base import ORIGIN, ROW_ID, SOURCE

_LIST = "See what is: penstock quarantine list"


@dataclass(frozen=True)
class Held:
    """The rows of one source that broke one rule of the contract in force.

    Attributes:
        source: Its name in the recipe.
        rule: The expectation and its arguments.
        num_rows: How many rows broke it before any other rule.
        num_released: How many of them people have let through.
        num_dropped: How many of them people have given up.
        example: The id of one of them, undecided if there is one.
    """

    source: str
    rule: str
    num_rows: int
    num_released: int
    num_dropped: int
    example: str

    @property
    def num_open(self) -> int:
        """How many nobody has decided about."""
        return self.num_rows - self.num_released - self.num_dropped


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
        contract: The contract it broke, by the name of that contract's table.
        decision: What was decided about it, if anything.
    """

    row_id: str
    source: str
    origin: str
    rule: str
    value: str | None
    row: dict[str, Any]
    contract: str
    decision: Decision | None = None


def held(pipeline: Pipeline) -> list[Held]:
    """Rows in quarantine by source and rule, the most open rows first."""
    decided = _decided(pipeline)
    counts: dict[tuple[str, str], Counter[str]] = {}
    examples: dict[tuple[str, str], tuple[bool, str]] = {}
    for entry in _entries(pipeline, [ROW_ID, SOURCE, "contract", "rule"]):
        key, decision = (entry[SOURCE], entry["rule"]), decided.get(entry[ROW_ID])
        counts.setdefault(key, Counter())[decision.action if decision else "open"] += 1
        candidate = (decision is not None, entry[ROW_ID])
        examples[key] = min(examples.get(key, candidate), candidate, key=lambda one: one[0])
    found = [
        Held(*key, count.total(), count["release"], count["drop"], examples[key][1])
        for key, count in counts.items()
    ]
    return sorted(found, key=lambda one: (-one.num_open, one.source, one.rule))


def rows(
    pipeline: Pipeline,
    row_id: str = "",
    source: str = "",
    rule: str = "",
    limit: int | None = 20,
) -> list[HeldRow]:
    """Rows in quarantine, in the order they came.

    Args:
        pipeline: Whose.
        row_id: The start of a row's id; empty takes all.
        source: The name of a source; empty takes all.
        rule: A part of the rule they broke; empty takes all.
        limit: At most so many.

    Raises:
        StoreError: No row matches.
    """
    found = list(islice(_matching(pipeline, row_id, source, rule), limit))
    if not found and (row_id or source or rule):
        what = f"row {row_id!r}" if row_id else "row"
        where = f" of source {source!r}" if source else ""
        broke = f" that broke {rule!r}" if rule else ""
        raise StoreError(f"There is no {what}{where}{broke} in quarantine.", _LIST)
    return found


def decide(
    pipeline: Pipeline,
    action: Action,
    row_ids: Sequence[str] = (),
    source: str = "",
    rule: str = "",
    reason: str = "",
) -> list[HeldRow]:
    """Release rows or drop them; the next run goes by it.

    Args:
        pipeline: Whose.
        action: ``release`` lets a row through, ``drop`` gives it up.
        row_ids: Starts of ids, each of one row; empty takes all rows that match the rest.
        source: The name of a source; empty takes all.
        rule: A part of the rule they broke; empty takes all.
        reason: Why, for the record.

    Returns:
        The rows decided about; those the same was decided about before are left out.

    Raises:
        StoreError: No row matches, or one id is the start of several.
        LedgerError: Somebody else is deciding at this moment.
    """
    starts = row_ids or ("",)
    chosen = [row for one in starts for row in _one_or_all(pipeline, one, source, rule)]
    return decide_about(pipeline, action, chosen, reason)


def decide_about(
    pipeline: Pipeline, action: Action, chosen: Sequence[HeldRow], reason: str
) -> list[HeldRow]:
    """Release rows or drop them that were looked at before; else as ``decide``."""
    claim = pipeline.ledger.try_claim(f"{pipeline.recipe.name}/{decisions.DECISIONS}")
    if claim is None:
        raise LedgerError("Another process is deciding about rows just now.", "Try again.")
    with claim:
        decided = _decided(pipeline)
        new = [
            row
            for row in {row.row_id: row for row in chosen}.values()
            if row.row_id not in decided or decided[row.row_id].action != action
        ]
        if new:
            table = decisions.table(pipeline.store, pipeline.recipe)
            table.sweep()
            entries = [
                {"row_id": row.row_id, "source": row.source, "contract": row.contract}
                for row in new
            ]
            decisions.append(table, entries, action, actor(), reason)
    return new


def _one_or_all(pipeline: Pipeline, start: str, source: str, rule: str) -> list[HeldRow]:
    found = rows(pipeline, start, source, rule, limit=None)
    if start and len({row.row_id for row in found}) > 1:
        ids = ", ".join(row.row_id[: len(start) + 4] for row in found[:5])
        raise StoreError(f"{start!r} begins the ids of {len(found)} rows: {ids}.", "Give more.")
    return found


def _matching(pipeline: Pipeline, row_id: str, source: str, rule: str) -> Iterator[HeldRow]:
    if source and source not in pipeline.recipe.sources:
        raise StoreError(
            f"There is no source {source!r}, so no row of it in quarantine."
            f"{did_you_mean(source, sorted(pipeline.recipe.sources))}"
        )
    decided = _decided(pipeline)
    for entry in _entries(pipeline):
        if not entry[ROW_ID].startswith(row_id) or source not in ("", entry[SOURCE]):
            continue
        if rule in entry["rule"]:
            yield HeldRow(
                row_id=entry[ROW_ID],
                source=entry[SOURCE],
                origin=entry[ORIGIN],
                rule=entry["rule"],
                value=entry["value"],
                row=json.loads(entry["row"]),
                contract=entry["contract"],
                decision=decided.get(entry[ROW_ID]),
            )


def _entries(pipeline: Pipeline, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """Entries under the contract in force; those of an earlier contract say nothing now."""
    contracts = set(valid_tables(pipeline.recipe).values())
    table = pipeline.store.table(pipeline.recipe.name, QUARANTINE)
    for batch in table.scan(columns=columns):
        yield from (entry for entry in batch.to_pylist() if entry["contract"] in contracts)


def _decided(pipeline: Pipeline) -> dict[str, Decision]:
    contracts = list(valid_tables(pipeline.recipe).values())
    return decisions.standing(decisions.table(pipeline.store, pipeline.recipe), contracts)
