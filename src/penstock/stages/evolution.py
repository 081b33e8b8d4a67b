"""Columns that change over time: what a table's columns become, and which rows do not fit.

A new column is added. A column that is left out is null. A type the table
already has stands, so a row whose value contradicts it cannot go in; it is a
dead letter, and the rows beside it are not held up.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import chain

import pyarrow as pa
import pyarrow.compute as pc

from penstock.errors import SourceError
from penstock.sources.base import EXCERPT_CHARACTERS, OFFSET, ORIGIN, ROW_KEY, DeadLetter
from penstock.tables import ROW, VERSION
from penstock.transforms.base import ROW_ID, SOURCE

_OURS = pa.schema(
    [
        (ROW_ID, pa.string()),
        (SOURCE, pa.string()),
        (ORIGIN, pa.string()),
        (VERSION, pa.int64()),
        (ROW, pa.int64()),
    ]
)


def merged(have: pa.Schema, new: Iterable[pa.Schema], label: str) -> pa.Schema:
    """The table's columns and a unit's together; the table's types stand.

    A column of nothing but nulls says nothing about its type, and is left out
    until a unit does.

    Args:
        have: The table's columns, perhaps none.
        new: Of the unit's batches, in their order.
        label: The unit's, for messages.

    Raises:
        SourceError: A new column has a type that no Delta table holds.
    """
    new = list(new)
    taken = {name: have.field(name).type for name in have.names}
    for name, type_ in _together(new).items():
        if name not in taken and not _clashes(name, taken):
            taken[name] = _storable(name, type_, label)
    # One batch after the other, so that all that will fit is in: then whatever other units
    # add later, the same rows fit.
    for field in chain.from_iterable(new):
        if field.name in taken:
            taken[field.name] = _grown(taken[field.name], field.type) or taken[field.name]
    taken |= {field.name: field.type for field in _OURS}
    return pa.schema(list(taken.items()))


def fitting(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The rows of ``batch`` that can be cast to the columns of ``schema``."""
    misfits = _misfits(batch, schema)
    if misfits:
        keep = [i not in misfits for i in range(batch.num_rows)]
        batch = batch.filter(pa.array(keep, pa.bool_()))
    # Of a column with another type, only nulls are left.
    others = [f.name for f in batch.schema if f.name in schema.names and not _fits(f, schema)]
    return batch.drop_columns(others) if others else batch


def misfits(batch: pa.RecordBatch, schema: pa.Schema) -> Iterator[DeadLetter]:
    """A letter for each row of ``batch`` that ``fitting`` leaves out, in order."""
    found = _misfits(batch, schema)
    for i in sorted(found):
        name, reason = found[i]
        offset = batch[OFFSET][i].as_py() if OFFSET in batch.schema.names else None
        yield DeadLetter(batch[ORIGIN][i].as_py(), reason, _excerpt(batch[name][i]), offset)


def _misfits(batch: pa.RecordBatch, schema: pa.Schema) -> dict[int, tuple[str, str]]:
    """Index of a row that does not fit -> the column at fault, and why."""
    found: dict[int, tuple[str, str]] = {}
    for field in batch.schema:
        if field.name in (OFFSET, ROW_KEY) or pa.types.is_null(field.type):
            continue
        if field.name not in schema.names:
            reason = f"column {field.name!r} differs from another only in case"
            bad = pc.indices_nonzero(batch[field.name].is_valid()).to_pylist()
        elif not _fits(field, schema):
            known = schema.field(field.name).type
            reason = f"column {field.name!r} is {field.type}, was {known}"
            bad = pc.indices_nonzero(batch[field.name].is_valid()).to_pylist()
        else:
            known = schema.field(field.name).type
            reason = f"column {field.name!r} holds a value that does not fit {known}"
            bad = _unfit_values(batch[field.name], known)
        for i in bad:
            found.setdefault(i, (field.name, reason))
    return found


def _unfit_values(values: pa.Array, type_: pa.DataType) -> list[int]:
    if values.type == type_ or _casts(values, type_):
        return []
    return [i for i in range(len(values)) if not _casts(values.slice(i, 1), type_)]


def _casts(values: pa.Array, type_: pa.DataType) -> bool:
    try:
        # Delta counts time in microseconds, and drops what is finer.
        values.cast(type_, safe=not pa.types.is_timestamp(type_))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return False
    return True


def _fits(field: pa.Field, schema: pa.Schema) -> bool:
    """Whether values of a column can be cast one by one without being read as something else."""
    known = schema.field(field.name).type
    # JSON writes 1.0 for 1: such a value fits, 1.5 does not, and each says so for itself.
    by_value = pa.types.is_floating(field.type) and pa.types.is_integer(known)
    return by_value or _grown(known, field.type) is not None


def _excerpt(value: pa.Scalar) -> str:
    return json.dumps(value.as_py(), ensure_ascii=False, default=str)[:EXCERPT_CHARACTERS]


def _together(schemas: Iterable[pa.Schema]) -> dict[str, pa.DataType]:
    """Column -> the type that the batches of one unit share; the earlier stands in a clash."""
    types: dict[str, pa.DataType] = {}
    for schema in schemas:
        for field in schema:
            if field.name not in (OFFSET, ROW_KEY) and not pa.types.is_null(field.type):
                known = types.get(field.name, field.type)
                types[field.name] = _promoted(known, field.type) or known
    return types


def _promoted(known: pa.DataType, new: pa.DataType) -> pa.DataType | None:
    """The type that holds both, as Arrow sees it; None if there is no such type."""
    schemas = [pa.schema([("x", type_)]) for type_ in (known, new)]
    try:
        return pa.unify_schemas(schemas, promote_options="permissive").field("x").type
    except (pa.ArrowTypeError, pa.ArrowInvalid):
        return None


def _storable(name: str, type_: pa.DataType, label: str) -> pa.DataType:
    """The type a new column gets: Delta has no unsigned integers, times of day or durations."""
    if any(is_(type_) for is_ in (pa.types.is_time, pa.types.is_duration, pa.types.is_interval)):
        raise SourceError(
            f"{label}: column {name!r} is {type_}, which a Delta table cannot hold.",
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
        return known if _promoted(known, new) == known else None
    fields = {field.name: field.type for field in known}
    for field in new:
        type_ = _grown(fields.get(field.name, field.type), field.type)
        if type_ is None or (field.name not in fields and _clashes(field.name, fields)):
            return None
        fields[field.name] = type_
    return pa.struct(list(fields.items()))


def _clashes(name: str, names: Iterable[str]) -> bool:
    """Whether a new name differs from one there is only in case, which Delta does not tell."""
    return name.lower() in {known.lower() for known in names}


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
