"""What an engine is: where transforms run, over more rows than fit in memory.

An engine does two things, ``map_batches`` and ``map_groups``, and hands plain
``pyarrow.Table`` to the transforms, so they run unchanged on this machine, on
Ray Data (``map_batches`` over Arrow) or on Spark (``mapInArrow``, ``applyInArrow``).

To add an engine, write one file with a class like ``Engine`` below, add one line
to ``registry.BUILTIN``, and pass ``tests/conformance/test_engines.py``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from penstock.errors import PenstockError
from penstock.sources.base import AnyOptions, Options
from penstock.transforms.base import (
    REMOVED_SCHEMA,
    ROW_ID,
    ClusteredTransform,
    KeyedTransform,
    Outcome,
    RowTransform,
)

Transform = RowTransform | KeyedTransform | ClusteredTransform


class Rows(Protocol):
    """Rows in ingest order that can be read more than once."""

    @property
    def schema(self) -> pa.Schema:
        """Of every batch."""
        ...

    def batches(self) -> Iterator[pa.Table]:
        """The rows from the first on, cut anyhow."""
        ...


class StoredRows(Rows, Protocol):
    """Rows that an engine has put somewhere."""

    @property
    def num_rows(self) -> int:
        """How many there are."""
        ...

    def discard(self) -> None:
        """Free the place they take; they cannot be read again."""
        ...


@dataclass(frozen=True)
class Mapped:
    """What one pass of an engine made of some rows.

    Attributes:
        kept: In ingest order.
        removed: ``REMOVED_SCHEMA``, in the ingest order of the rows they name.
    """

    kept: StoredRows
    removed: StoredRows


class Engine(Protocol):
    """A place where transforms run.

    Built as ``Class(scratch, **options)``: a folder for what does not fit in memory,
    which the caller deletes, and the fields of ``Options``, all of them places: the
    same rows come out whatever they are. The caller closes it. Results depend on rows
    and transform alone, not on how the rows are cut into batches.
    """

    Options: ClassVar[AnyOptions]

    def __init__(self, scratch: Path, **options: Any) -> None: ...

    def map_batches(self, rows: Rows, transform: RowTransform) -> Mapped:
        """Call ``transform`` on all rows, some at a time, after ``open()`` per worker."""
        ...

    def map_groups(self, rows: Rows, transform: KeyedTransform) -> Mapped:
        """Call ``transform.keep`` on all rows, all of one key together."""
        ...

    def close(self) -> None:
        """Stop what was started for it; results that were stored can still be read."""
        ...


@dataclass(frozen=True)
class StreamedRows:
    """Rows that are made anew for each reading.

    Attributes:
        schema: Of every batch.
        read: Starts a reading from the first row on.
    """

    schema: pa.Schema
    read: Callable[[], Iterable[pa.Table | pa.RecordBatch]]

    def batches(self) -> Iterator[pa.Table]:
        """The rows from the first on."""
        for batch in self.read():
            table = batch if isinstance(batch, pa.Table) else pa.Table.from_batches([batch])
            yield table


@dataclass(frozen=True)
class Prepared:
    """What a list of transforms made of some rows.

    Attributes:
        kept: In ingest order.
        removed: One ``StoredRows`` of ``REMOVED_SCHEMA`` for each pass.
        counts: Transform name -> how many rows it removed, in the order of the steps.
        num_rows: How many rows there were.
    """

    kept: Rows
    removed: tuple[StoredRows, ...]
    counts: dict[str, int]
    num_rows: int

    def removed_batches(self) -> Iterator[pa.Table]:
        """The whole ledger of removed rows."""
        for rows in self.removed:
            yield from rows.batches()


def run_transforms(
    engine: Engine,
    rows: Rows,
    transforms: Sequence[Transform],
    progress: Callable[[int], None] | None = None,
) -> Prepared:
    """Run ``transforms`` one after the other.

    Neighbouring row transforms share one pass over the rows, so each row is
    written to disk once for all of them.

    Args:
        engine: Where to run them.
        rows: Left as they are.
        transforms: In the order of the recipe.
        progress: Called with a number of rows whenever some were read, in every pass.

    Raises:
        PenstockError: A transform lost or invented rows.
    """
    kept: Rows = rows
    stored: StoredRows | None = None
    removed: list[StoredRows] = []
    counts = {transform.name: 0 for transform in transforms}
    num_rows: int | None = None
    for steps in _passes(transforms):
        watched = _Watched(kept, progress)
        mapped = _run_pass(engine, watched, steps)
        _check_sum(steps, watched.num_rows, mapped)
        for step, count in _count_steps(mapped.removed).items():
            counts[step] = counts.get(step, 0) + count
        if stored is not None:
            stored.discard()
        num_rows = watched.num_rows if num_rows is None else num_rows
        kept = stored = mapped.kept
        removed.append(mapped.removed)
    if num_rows is None:
        num_rows = sum(table.num_rows for table in rows.batches())
    return Prepared(kept, tuple(removed), counts, num_rows)


def in_ingest_order(removed: pa.Table, rows: pa.Table) -> tuple[pa.Table, pa.Array]:
    """Sort ledger rows as the rows they name.

    Returns:
        The sorted ledger rows, and each one's index in ``rows``.
    """
    if not removed.num_rows:
        return removed, pa.array([], pa.int32())
    indices = pc.index_in(removed[ROW_ID], rows[ROW_ID].combine_chunks()).combine_chunks()
    order = pc.sort_indices(indices)
    return removed.take(order), indices.take(order)


def _passes(transforms: Sequence[Transform]) -> list[list[Transform]]:
    """Neighbouring row transforms together, all others alone."""
    passes: list[list[Transform]] = []
    for step in transforms:
        if passes and all(isinstance(s, RowTransform) for s in (step, passes[-1][-1])):
            passes[-1].append(step)
        else:
            passes.append([step])
    return passes


def _run_pass(engine: Engine, rows: Rows, steps: list[Transform]) -> Mapped:
    first = steps[0]
    if isinstance(first, KeyedTransform):
        return engine.map_groups(rows, first)
    if isinstance(first, ClusteredTransform):
        # That module is about engines, which are described here.
        from penstock.engines.clusters import run_clustered

        return run_clustered(engine, rows, first)
    return engine.map_batches(rows, _Chain([s for s in steps if isinstance(s, RowTransform)]))


def _check_sum(steps: list[Transform], num_rows: int, mapped: Mapped) -> None:
    after = mapped.kept.num_rows + mapped.removed.num_rows
    if after != num_rows:
        names = ", ".join(step.name for step in steps)
        raise PenstockError(
            f"{names}: {num_rows} rows went in, but {mapped.kept.num_rows} were kept and "
            f"{mapped.removed.num_rows} recorded as removed.",
            "A transform must keep or record every row; check the ones that are not built in.",
        )


def _count_steps(removed: Rows) -> Counter[str]:
    counts: Counter[str] = Counter()
    for table in removed.batches():
        for entry in pc.value_counts(table["step"]).to_pylist():
            counts[entry["values"]] += entry["counts"]
    return counts


class _Watched:
    """Rows that are counted as they are read."""

    def __init__(self, rows: Rows, progress: Callable[[int], None] | None) -> None:
        self.schema = rows.schema
        self.num_rows = 0
        self._rows = rows
        self._progress = progress or (lambda count: None)

    def batches(self) -> Iterator[pa.Table]:
        self.num_rows = 0
        for table in self._rows.batches():
            yield table
            self.num_rows += table.num_rows
            self._progress(table.num_rows)


class _Chain:
    """Several row transforms as one."""

    name: ClassVar[str] = "chain"
    revision: ClassVar[int] = 1
    Options: ClassVar[AnyOptions] = Options

    def __init__(self, transforms: Sequence[RowTransform]) -> None:
        self._transforms = transforms

    def open(self) -> None:
        for transform in self._transforms:
            transform.open()

    def __call__(self, rows: pa.Table) -> Outcome:
        removed = [REMOVED_SCHEMA.empty_table()]
        for transform in self._transforms:
            outcome = transform(rows)
            rows = outcome.kept
            removed.append(outcome.removed)
        return Outcome(rows, pa.concat_tables(removed))
