"""The rows that validation passed on, in the order in which it did."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from penstock.artifacts import Artifact
from penstock.ledger import Ledger
from penstock.recipe import Recipe
from penstock.stages import decisions
from penstock.stages.ingest import raw_tables
from penstock.stages.validate import STAGE, decided_upto, renamed, valid_table
from penstock.store import Store
from penstock.tables import VERSION
from penstock.transforms.base import ROW_ID


@dataclass(frozen=True)
class Look:
    """What one result of validate let through.

    Attributes:
        upto: Source -> the raw version it reached to; -1 for a source it did not read.
        decisions: The version of the decisions that it knew.
    """

    upto: Mapping[str, int]
    decisions: int


def looks(ledger: Ledger, recipe: Recipe, artifact: Artifact) -> list[Look]:
    """A result of validate, after those before it: the order in which rows were let through.

    Whatever contract the others had, they say which rows there were to train on.
    """
    summary, raw = artifact.summary, raw_tables(recipe)
    last = Look(summary["data"], summary.get("decisions", -1))
    found = []
    for result in ledger.results(recipe.name, STAGE.name):
        reached = result.summary.get("reached", {})
        upto = {name: min(reached.get(raw[name], -1), end) for name, end in last.upto.items()}
        found.append(Look(upto, min(result.summary.get("decisions", -1), last.decisions)))
    return [*found, last]


def valid_rows(store: Store, recipe: Recipe, seen: Sequence[Look]) -> Iterator[pa.RecordBatch]:
    """The rows that were passed on, in ingest order.

    That is the order of the looks that let them through; in each, source after source,
    and those that people released after those that met the contract. So a new row comes
    after every row that a model may have been trained on, from whatever source it is.

    Args:
        store: Where the tables are.
        recipe: The recipe.
        seen: By ``looks``.
    """
    tables = {name: valid_table(store, recipe, name) for name in recipe.sources}
    valid = {name: _Forward(t.scan(upto=seen[-1].upto[name])) for name, t in tables.items()}
    released = {name: _Releases(store, recipe, name, seen[-1]) for name in recipe.sources}
    for look in seen:
        for name in recipe.sources:
            yield from valid[name].read(look.upto[name])
            yield from released[name].read(look)


class _Forward:
    """A table's rows, from one version to the next."""

    def __init__(self, batches: Iterator[pa.RecordBatch]) -> None:
        self._batches = batches
        self._rest: pa.RecordBatch | None = None

    def read(self, upto: int) -> Iterator[pa.RecordBatch]:
        """The rows not read yet that versions up to this one brought."""
        while (batch := self._next()) is not None:
            count = int(np.searchsorted(batch[VERSION].to_numpy(), upto, "right"))
            if count:
                yield batch.slice(0, count)
            if count < batch.num_rows:
                self._rest = batch.slice(count)
                return

    def _next(self) -> pa.RecordBatch | None:
        rest, self._rest = self._rest, None
        return rest if rest is not None else next(self._batches, None)


class _Releases:
    """The rows of one source that people let through, each as soon as they had."""

    def __init__(self, store: Store, recipe: Recipe, source: str, last: Look) -> None:
        self._store, self._recipe, self._source = store, recipe, source
        self._waiting = self._standing(last)
        self._seen: tuple[int, int] | None = None

    def read(self, look: Look) -> Iterator[pa.RecordBatch]:
        """The rows that this look was the first to let through."""
        upto = look.upto[self._source]
        if not self._waiting or self._seen == (upto, look.decisions):
            return
        self._seen = upto, look.decisions
        due = pa.array(sorted(self._waiting & self._standing(look)), pa.string())
        columns = self._recipe.sources[self._source].columns
        raw = self._store.table(self._recipe.name, raw_tables(self._recipe)[self._source])
        for batch in renamed(raw.scan(upto=upto), columns) if len(due) else ():
            rows = batch.filter(pc.is_in(batch[ROW_ID], due))
            self._waiting -= set(rows[ROW_ID].to_pylist())
            yield rows

    def _standing(self, look: Look) -> set[str]:
        decided = decided_upto(self._store, self._recipe, look.decisions)
        return set(decisions.released(decided, self._source))
