"""Ingest: pinned units of input become rows of a Delta table, exactly once.

Each source has a raw table of its own, so that sources can come and go and
their columns never collide. A unit is read into a spool first: only when it
ended cleanly, and all its columns are known, is it committed, with its position,
in one Delta transaction. What could not be turned into a row is kept in the
dead-letter table under the same rule.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from penstock.artifacts import Artifact, digest_of, store_errors
from penstock.errors import SourceError
from penstock.recipe import Recipe, canonical
from penstock.sources.base import OFFSET, ORIGIN, ROW_KEY, DeadLetter, Recalls, Source, Unit
from penstock.stages.base import Job, Pinned, Stage
from penstock.tables import ROW, VERSION, Position, Table, numbered
from penstock.transforms.base import ROW_ID, SOURCE

DEAD_LETTERS = "dead_letters"
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
_OURS = pa.schema(
    [
        (ROW_ID, pa.string()),
        (SOURCE, pa.string()),
        (ORIGIN, pa.string()),
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


def snapshot(recipe: Recipe, name: str, source: Source, seen: Artifact | None) -> list[Unit]:
    """What a source has now, and what was ingested from it before.

    Rows outlive the file they came from, so a file that is gone changes nothing.
    """
    units: dict[str, Unit] = {}
    if seen is not None and seen.settings["tables"].get(name) == raw_tables(recipe)[name]:
        units = {unit["stream"]: Unit(**unit) for unit in seen.summary["units"][name]}
    if isinstance(source, Recalls):
        source.recall(tuple(units.values()))
    units |= {unit.stream: unit for unit in source.snapshot()}
    return list(units.values())


def _run(job: Job) -> dict[str, Any]:
    """Bring every pinned unit into its table that is not there yet."""
    tables: dict[str, Table] = {}
    dead = Table(job.store.table(job.recipe.name, DEAD_LETTERS))
    dead.sweep()
    for name, source in sources(job.recipe).items():
        table = Table(job.store.table(job.recipe.name, raw_tables(job.recipe)[name]))
        table.sweep()
        ingester = _Ingester(name, source, table, dead, job.folder / "spool")
        units = job.pinned.units[name]
        with job.progress.track(f"ingest {name}", _total_bytes(units)) as advance:
            for unit in units:
                ingester.take(unit)
                advance(unit.size_bytes or 0)
        tables[str(table.path.relative_to(job.store.root))] = table
    return _summary(job, tables, dead)


def _summary(job: Job, tables: Mapping[str, Table], dead: Table) -> dict[str, Any]:
    before = job.before()
    rows = {path: table.count_rows() for path, table in tables.items()}
    seen = {unit["stream"] for units in before.get("units", {}).values() for unit in units}
    units = [unit for some in job.pinned.units.values() for unit in some]
    return {
        "tables": {path: table.version() for path, table in tables.items()},
        "raw_rows": rows,
        "units": {name: [asdict(u) for u in some] for name, some in job.pinned.units.items()},
        "new_units": sum(unit.stream not in seen for unit in units),
        "dead_total": dead.count_rows(),
        "dead_letters": dead.count_rows() - before.get("dead_total", 0),
        "rows": {"out": _growth(rows, before.get("raw_rows", {})), "total": sum(rows.values())},
    }


def _growth(now: Mapping[str, int], before: Mapping[str, int]) -> int:
    return sum(count - before.get(path, 0) for path, count in now.items())


STAGE = Stage("ingest", 1, (), _settings, _run, writes_tables=True)


def _total_bytes(units: Iterable[Unit]) -> int | None:
    sizes = [unit.size_bytes for unit in units]
    return None if None in sizes else sum(size or 0 for size in sizes)


@dataclass
class _Ingester:
    """Takes one source's units into its table."""

    name: str
    source: Source
    table: Table
    dead: Table
    scratch: Path

    def take(self, unit: Unit) -> None:
        """Commit a unit's rows and its dead letters, each once.

        The two commits are independent: whichever a crash left out is made up
        for by reading again what came after the lesser of the two positions.
        """
        while (after := self._committed(unit)) < unit.position:
            spool = _Spool(self.scratch)
            for piece in self.source.read(replace(unit, after=after)):
                spool.add(piece)
            self._commit_dead(spool, unit)
            self._commit_rows(spool, unit)
            spool.clear()

    def _committed(self, unit: Unit) -> int:
        """How far both tables have come on the unit's stream."""
        have = self.table.position(unit.stream), self.dead.position(self._dead_stream(unit))
        return min(have)

    def _dead_stream(self, unit: Unit) -> str:
        return f"{self.table.path.name}/{unit.stream}"

    def _commit_rows(self, spool: _Spool, unit: Unit) -> None:
        after = self.table.position(unit.stream)
        schema = _merged(self.table.schema(), spool.schema(), unit)

        def rows(version: int) -> Iterator[pa.RecordBatch]:
            identified = _identified(_beyond(spool.batches(), after), self.name, unit)
            return numbered(identified, version, schema)

        try:
            self.table.append_once(Position(unit.stream, unit.position), schema, rows, after)
        except pa.ArrowInvalid as error:
            raise SourceError(
                f"{unit.label}: a value does not fit its column: {error}",
                "Convert the file, or give it to a source with another name.",
            ) from error

    def _commit_dead(self, spool: _Spool, unit: Unit) -> None:
        position = Position(self._dead_stream(unit), unit.position)
        after = self.dead.position(position.stream)
        letters = [one for one in spool.dead if one.offset is None or one.offset > after]
        columns = {
            SOURCE: [self.name] * len(letters),
            "unit": [unit.label] * len(letters),
            ORIGIN: [letter.origin for letter in letters],
            "reason": [letter.reason for letter in letters],
            "excerpt": [letter.excerpt for letter in letters],
        }

        def rows(version: int) -> Iterator[pa.RecordBatch]:
            batch = pa.RecordBatch.from_pydict(columns, schema=pa.schema(list(_DEAD_SCHEMA)[:5]))
            return numbered([batch], version, _DEAD_SCHEMA)

        self.dead.append_once(position, _DEAD_SCHEMA, rows, after)


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

    def schema(self) -> pa.Schema:
        """The columns of all batches together."""
        with store_errors(self.folder):
            self._close()
        if not self._schemas:
            return pa.schema([])
        return pa.unify_schemas(self._schemas, promote_options="permissive")

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


def _merged(have: pa.Schema, new: pa.Schema, unit: Unit) -> pa.Schema:
    """The table's columns and a unit's together; the table's types stand.

    A column of nothing but nulls says nothing about its type, and is left out
    until a unit does.

    Raises:
        SourceError: A column's type contradicts the table's, or no table can hold it.
    """
    taken = {name: have.field(name).type for name in have.names}
    for field in new:
        if pa.types.is_null(field.type) or field.name in (OFFSET, ROW_KEY):
            continue
        known = taken.get(field.name)
        if known is None:
            taken[field.name] = _storable(field, unit)
            continue
        grown = _grown(known, field.type)
        if grown is None:
            raise SourceError(
                f"{unit.label}: column {field.name!r} is {field.type}, "
                f"but was {known} in earlier files.",
                "Convert the file, or give it to a source with another name.",
            )
        taken[field.name] = grown
    taken |= {field.name: field.type for field in _OURS}
    return pa.schema([(name, type_) for name, type_ in taken.items()])


def _storable(field: pa.Field, unit: Unit) -> pa.DataType:
    """The type a new column gets: Delta has no unsigned integers, times of day or durations."""
    type_ = field.type
    if any(is_(type_) for is_ in (pa.types.is_time, pa.types.is_duration, pa.types.is_interval)):
        raise SourceError(
            f"{unit.label}: column {field.name!r} is {type_}, which a Delta table cannot hold.",
            "Convert the column in the file, to text or to a number of seconds.",
        )
    if pa.types.is_unsigned_integer(type_):
        return pa.int64()
    return pa.float32() if pa.types.is_float16(type_) else type_


def _grown(known: pa.DataType, new: pa.DataType) -> pa.DataType | None:
    """The type that holds the table's values and a unit's; None if there is no such type."""
    if known == new or _widens(new, known):
        return known
    if pa.types.is_dictionary(new):
        return _grown(known, new.value_type)
    if _is_list(known) and _is_list(new):
        value = _grown(known.value_type, new.value_type)
        return None if value is None else pa.list_(known.value_field.with_type(value))
    if not (pa.types.is_struct(known) and pa.types.is_struct(new)):
        return None
    fields = {field.name: field.type for field in known}
    for field in new:
        type_ = _grown(fields.get(field.name, field.type), field.type)
        if type_ is None:
            return None
        fields[field.name] = type_
    return pa.struct(list(fields.items()))


def _is_list(type_: pa.DataType) -> bool:
    return bool(pa.types.is_list(type_) or pa.types.is_large_list(type_))


def _widens(new: pa.DataType, known: pa.DataType) -> bool:
    """Whether values of type ``new`` go into a column of type ``known``."""
    if pa.types.is_timestamp(new) and pa.types.is_timestamp(known):
        return (new.tz is None) == (known.tz is None)
    strings = pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view
    for kinds in (strings, (pa.types.is_binary, pa.types.is_large_binary), (pa.types.is_date,)):
        if any(is_(new) for is_ in kinds) and any(is_(known) for is_ in kinds):
            return True
    if pa.types.is_null(new):
        return True
    if pa.types.is_integer(new):
        return bool(pa.types.is_floating(known) or pa.types.is_integer(known))
    return bool(pa.types.is_floating(new) and pa.types.is_floating(known))


def _beyond(batches: Iterable[pa.RecordBatch], after: int) -> Iterator[pa.RecordBatch]:
    """The rows that stand beyond ``after`` on their stream, where rows say where they stand."""
    for batch in batches:
        if OFFSET in batch.schema.names:
            batch = batch.filter(pc.greater(batch[OFFSET], after))
        yield batch


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
