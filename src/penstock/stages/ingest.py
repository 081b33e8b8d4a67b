"""Ingest: pinned units of input become rows of a Delta table, exactly once.

Each source has a raw table of its own, so that sources can come and go and
their columns never collide. A unit is read into a spool first: only when it
ended cleanly, and all its columns are known, is it committed, with its position,
in one Delta transaction. What could not be turned into a row, or contradicts the
type its column has, is kept in the dead-letter table under the same rule.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from penstock.artifacts import Artifact, digest_of, store_errors
from penstock.errors import SourceError
from penstock.recipe import Recipe, canonical
from penstock.sources.base import (
    OFFSET,
    ORIGIN,
    RESERVED,
    ROW_KEY,
    DeadLetter,
    Recalls,
    Source,
    Unit,
)
from penstock.stages.base import Job, Pinned, Stage
from penstock.stages.evolution import fitting, merged, misfits
from penstock.store import Store
from penstock.tables import ROW, VERSION, Position, Table, numbered
from penstock.transforms.base import ROW_ID, SOURCE

DEAD_LETTERS = "dead_letters"
_LETTERS_PER_BATCH = 10_000
# A long unit that may be committed in parts is, so that a kill costs one of them at most.
PART = 1_000_000
_DEAD_SCHEMA = pa.schema(
    [
        (SOURCE, pa.string()),
        ("unit", pa.string()),
        (ORIGIN, pa.string()),
        ("reason", pa.string()),
        ("excerpt", pa.string()),
        (VERSION, pa.int64()),
        (ROW, pa.int64()),
    ]
)


def sources(recipe: Recipe) -> dict[str, Source]:
    """The recipe's sources by name, ready to be read."""
    out: dict[str, Source] = {}
    for name, config in recipe.sources.items():
        adapter, options = recipe.plugin("sources", config)
        out[name] = adapter(options, recipe.folder)
    return out


def raw_tables(recipe: Recipe) -> dict[str, str]:
    """Source name -> the name of its raw table.

    The name carries a digest of how the source is read: reading it another way
    gives other rows, and so another table.
    """
    out = {}
    for name, config in recipe.sources.items():
        _, options = recipe.plugin("sources", config)
        digest = digest_of([config.type, canonical(options)])
        out[name] = f"raw-{name}-{digest[:8]}"
    return out


def _settings(recipe: Recipe, pinned: Pinned) -> dict[str, Any]:
    return {
        "tables": raw_tables(recipe),
        "units": {
            name: sorted([unit.stream, unit.position] for unit in units)
            for name, units in pinned.units.items()
        },
    }


def snapshot(
    recipe: Recipe, store: Store, name: str, source: Source, seen: Artifact | None
) -> list[Unit]:
    """What a source has now, and what was ingested from it before.

    Rows outlive the file they came from, so a file that is gone changes nothing.

    Raises:
        SourceError: The source cannot be asked, or has less than was ingested of it.
    """
    reached = reach(recipe, store, name)
    if isinstance(source, Recalls):
        source.recall(tuple(held(recipe, store, name, seen)))
    found = source.snapshot()
    for unit in found:
        # Before the source was asked: since then, others may have ingested what is newer.
        if unit.divisible and reached(unit.stream) > unit.position:
            raise SourceError(
                f"{unit.label} ends at {unit.position}, but was ingested up to "
                f"{reached(unit.stream)}: it was cut, or made anew under the same name.",
                "To read it from its start, give it to a source of another name.",
            )
    units = {unit.stream: unit for unit in held(recipe, store, name, seen)}
    reached = reach(recipe, store, name)
    units |= {one.stream: _at_least(one, reached(one.stream)) for one in found}
    return list(units.values())


def held(recipe: Recipe, store: Store, name: str, seen: Artifact | None) -> list[Unit]:
    """The streams of a source that the newest result knows, as far as they were ingested."""
    if seen is None or seen.settings["tables"].get(name) != raw_tables(recipe)[name]:
        return []
    reached = reach(recipe, store, name)
    known = (Unit(**unit) for unit in seen.summary["units"][name])
    return [_at_least(unit, reached(unit.stream)) for unit in known]


def is_overtaken(recipe: Recipe, store: Store, pinned: Pinned) -> bool:
    """Whether more is ingested of a stream than was pinned of it.

    A follower (see follow.py) commits while runs come and go. The tables then hold
    rows that the run's fingerprint does not speak of, so the run has to pin again.
    """
    for name, units in pinned.units.items():
        reached = reach(recipe, store, name)
        if any(reached(unit.stream) > unit.position for unit in units):
            return True
    return False


def _at_least(unit: Unit, position: int) -> Unit:
    return replace(unit, position=max(unit.position, position))


def reach(recipe: Recipe, store: Store, name: str) -> Callable[[str], int]:
    """How far rows or dead letters of a source's streams are committed at this moment."""
    raw, dead = tables_of(recipe, store, name)
    rows, letters = raw.positions(), dead.positions()
    return lambda stream: max(rows(stream), letters(_dead_stream(raw, stream)))


def tables_of(recipe: Recipe, store: Store, name: str) -> tuple[Table, Table]:
    """A source's raw table, and that of all dead letters."""
    raw = store.table(recipe.name, raw_tables(recipe)[name])
    return raw, store.table(recipe.name, DEAD_LETTERS)


def _dead_stream(raw: Table, stream: str) -> str:
    return f"{raw.name}/{stream}"


def _run(job: Job) -> dict[str, Any]:
    """Bring every pinned unit into its table that is not there yet."""
    tables: dict[str, Table] = {}
    dead = job.store.table(job.recipe.name, DEAD_LETTERS)
    dead.sweep()
    for name, source in sources(job.recipe).items():
        table, _ = tables_of(job.recipe, job.store, name)
        table.sweep()
        ingester = Ingester(name, source, table, dead, job.folder / "spool")
        units = job.pinned.units[name]
        with job.progress.track(f"ingest {name}", _total_bytes(units)) as advance:
            for unit in units:
                ingester.take(unit)
                advance(unit.size_bytes or 0)
        tables[table.key] = table
    return _summary(job, tables, dead)


def _summary(job: Job, tables: Mapping[str, Table], dead: Table) -> dict[str, Any]:
    before = job.before()
    rows = {path: table.count_rows() for path, table in tables.items()}
    seen = {unit["stream"] for units in before.get("units", {}).values() for unit in units}
    units = [unit for some in job.pinned.units.values() for unit in some]
    columns = {path: _columns(table.schema()) for path, table in tables.items()}
    return {
        "tables": {path: table.version() for path, table in tables.items()},
        "raw_rows": rows,
        "columns": columns,
        "new_columns": _new_columns(columns, before.get("columns", {})),
        "units": {name: [asdict(u) for u in some] for name, some in job.pinned.units.items()},
        "new_units": sum(unit.stream not in seen for unit in units),
        "dead_total": dead.count_rows(),
        "dead_letters": dead.count_rows() - before.get("dead_total", 0),
        "rows": {"out": _growth(rows, before.get("raw_rows", {})), "total": sum(rows.values())},
    }


def _growth(now: Mapping[str, int], before: Mapping[str, int]) -> int:
    return sum(count - before.get(path, 0) for path, count in now.items())


def _columns(schema: pa.Schema) -> dict[str, str]:
    """The user's own columns with their types, in words."""
    return {field.name: str(field.type) for field in schema if field.name not in RESERVED}


def _new_columns(
    now: Mapping[str, Mapping[str, str]], before: Mapping[str, Mapping[str, str]]
) -> list[str]:
    """Columns that tables have gained; a table's first columns are no news."""
    known = {path: before[path] for path in now if before.get(path)}
    return [name for path, names in known.items() for name in now[path] if name not in names]


STAGE = Stage("ingest", 1, (), _settings, _run, writes_tables=True)


def _total_bytes(units: Iterable[Unit]) -> int | None:
    sizes = [unit.size_bytes for unit in units]
    return None if None in sizes else sum(size or 0 for size in sizes)


@dataclass
class Ingester:
    """Takes one source's units into its table.

    Attributes:
        name: The source's name.
        source: Where units are read.
        table: The source's raw table.
        dead: The table of dead letters, which all sources share.
        scratch: A folder of its own for what is being read.
        part: How far along its stream one commit of a divisible unit goes.
    """

    name: str
    source: Source
    table: Table
    dead: Table
    scratch: Path
    part: int = PART

    def take(self, unit: Unit) -> None:
        """Commit a unit's rows and its dead letters, each once."""
        while self.take_part(unit):
            pass

    def take_part(self, unit: Unit) -> bool:
        """Commit the next part of a unit, or all of one that cannot be divided.

        Columns are committed first, then letters, then rows. Whichever a crash left out is
        made up for by reading the same again: the columns of then still stand, so what was
        a letter then is one now, and all else is a row.

        Returns:
            Whether there was anything to commit.
        """
        rows, letters = self._positions(unit.stream)
        if min(rows, letters) >= unit.position:
            return False
        unit = replace(unit, after=min(rows, letters), position=self._end(unit, rows, letters))
        spool = _Spool(self.scratch)
        for piece in self.source.read(unit):
            spool.add(piece)
        schema = merged(self.table.schema(), spool.schemas(), unit.label)
        schema = self.table.add_columns(schema)
        # If another writer got in between, all of this is to be looked at again.
        if letters >= unit.position or self._commit_dead(spool, unit, schema, letters):
            self._commit_rows(spool, unit, schema, rows)
        spool.clear()
        return True

    def standing(self, units: Iterable[Unit]) -> list[Unit]:
        """The units, each with how far it is committed at this moment."""
        rows, letters = self.table.positions(), self.dead.positions()
        return [
            replace(
                unit, after=min(rows(unit.stream), letters(_dead_stream(self.table, unit.stream)))
            )
            for unit in units
        ]

    def _positions(self, stream: str) -> tuple[int, int]:
        """How far rows and letters have come on a stream."""
        return self.table.position(stream), self.dead.position(_dead_stream(self.table, stream))

    def _end(self, unit: Unit, rows: int, letters: int) -> int:
        """Where the next commits on a unit's stream end.

        If letters are ahead of rows, there: types are learned from all that is read at
        once, so with more of the stream a row that has its letter might fit, and another
        that has none might not.
        """
        if rows != letters:
            return max(rows, letters)
        return min(unit.position, rows + self.part) if unit.divisible else unit.position

    def _commit_rows(self, spool: _Spool, unit: Unit, schema: pa.Schema, after: int) -> None:
        def rows(version: int) -> Iterator[pa.RecordBatch]:
            identified = _identified(spool.batches(), self.name, unit)
            # Only now, so that a row's id does not depend on those beside it.
            return numbered((fitting(batch, schema) for batch in identified), version, schema)

        self.table.append_once(Position(unit.stream, unit.position), schema, rows, after)

    def _commit_dead(self, spool: _Spool, unit: Unit, schema: pa.Schema, after: int) -> bool:
        position = Position(_dead_stream(self.table, unit.stream), unit.position)

        def rows(version: int) -> Iterator[pa.RecordBatch]:
            unfit = (letter for batch in spool.batches() for letter in misfits(batch, schema))
            letters = _dead_batches(chain(spool.dead, unfit), self.name, unit)
            return numbered(letters, version, _DEAD_SCHEMA)

        return self.dead.append_once(position, _DEAD_SCHEMA, rows, after)


def _dead_batches(
    letters: Iterable[DeadLetter], source: str, unit: Unit
) -> Iterator[pa.RecordBatch]:
    rest = iter(letters)
    while some := list(islice(rest, _LETTERS_PER_BATCH)):
        columns = {
            SOURCE: [source] * len(some),
            "unit": [unit.label] * len(some),
            ORIGIN: [letter.origin for letter in some],
            "reason": [letter.reason for letter in some],
            "excerpt": [letter.excerpt for letter in some],
        }
        yield pa.RecordBatch.from_pydict(columns, schema=pa.schema(list(_DEAD_SCHEMA)[:5]))


class _Spool:
    """A unit's batches on disk, until it is known that there are no more."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.dead: list[DeadLetter] = []
        self._schemas: list[pa.Schema] = []
        self._writer: Any = None
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

    def add(self, piece: pa.RecordBatch | DeadLetter) -> None:
        """Keep one piece; a batch with other columns than the last starts a new file."""
        if isinstance(piece, DeadLetter):
            self.dead.append(piece)
            return
        with store_errors(self.folder):
            if not self._schemas or piece.schema != self._schemas[-1]:
                self._close()
                path = self.folder / f"{len(self._schemas):06d}.arrow"
                self._writer = pa.ipc.new_file(str(path), piece.schema)
                self._schemas.append(piece.schema)
            self._writer.write_batch(piece)

    def schemas(self) -> list[pa.Schema]:
        """The columns of the batches, in their order; nothing can be added any more."""
        with store_errors(self.folder):
            self._close()
        return self._schemas

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The batches in the order they came."""
        for path in sorted(self.folder.glob("*.arrow")):
            with pa.memory_map(str(path)) as file:
                reader = pa.ipc.open_file(file)
                for i in range(reader.num_record_batches):
                    yield reader.get_batch(i)

    def clear(self) -> None:
        """Remove the files."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _identified(
    batches: Iterable[pa.RecordBatch], source: str, unit: Unit
) -> Iterator[pa.RecordBatch]:
    """Give each row an id of its own that reading it again would give again.

    Where a stream grows that is the row's place on the stream, or the key it has
    there, wherever the unit that brings it ends; otherwise its place in the unit.
    """
    of_stream = _hash(f"{source}\n{unit.stream}\n")
    of_key = _hash(f"{source}\n{unit.stream}\nkey\n")
    of_unit = _hash(f"{source}\n{unit.stream}\n{unit.position}")
    start = 0
    for batch in batches:
        if ROW_KEY in batch.schema.names:
            ids = [_row_id(of_key, key.encode()) for key in batch[ROW_KEY].to_pylist()]
        elif OFFSET in batch.schema.names:
            ids = [_row_id(of_stream, _eight(place)) for place in batch[OFFSET].to_pylist()]
        else:
            places = range(start, start + batch.num_rows)
            ids = [_row_id(of_unit, _eight(place)) for place in places]
        start += batch.num_rows
        passing = [name for name in (OFFSET, ROW_KEY) if name in batch.schema.names]
        yield (
            batch.drop_columns(passing)
            .append_column(ROW_ID, pa.array(ids, pa.string()))
            .append_column(SOURCE, pa.repeat(source, batch.num_rows))
        )


def _hash(text: str) -> hashlib.blake2b:
    return hashlib.blake2b(text.encode(), digest_size=16)


def _eight(place: int) -> bytes:
    return place.to_bytes(8, "big")


def _row_id(prefix: hashlib.blake2b, name: bytes) -> str:
    digest = prefix.copy()
    digest.update(name)
    return digest.hexdigest()
