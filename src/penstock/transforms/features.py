"""Features of a row's entity, as they were at the row's time, in its prompt."""

from __future__ import annotations

from typing import ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from penstock.errors import RecipeError
from penstock.features.base import TIME, FeatureOptions, FeatureStore
from penstock.prompt import Prompt
from penstock.transforms.base import ROW_ID, Outcome, removed_rows, require_columns

_UTC = pa.timestamp("us", "UTC")
_ZONE = r":\d\d(\.\d+)?\s?(Z|[+-]\d\d(:?\d\d)?)$"
_COLUMN = "instruction"


class JoinFeatures:
    """Fill the prompt's template with features from a feature store.

    Args:
        options: The recipe's ``features`` section.
        store: Where to look features up.
    """

    name: ClassVar[str] = "features"
    revision: ClassVar[int] = 1
    Options: ClassVar[type[FeatureOptions]] = FeatureOptions

    def __init__(self, options: FeatureOptions, store: FeatureStore) -> None:
        self._prompt = options.prompt
        self._timestamp = options.timestamp
        self._store = store

    def open(self) -> None:
        """The store opens itself when it is first asked."""

    def __call__(self, rows: pa.Table) -> Outcome:
        """Make each row's instruction the filled template; rows without a value go."""
        prompt = self._prompt
        columns = [*prompt.entities.values(), self._timestamp, _COLUMN]
        require_columns(rows.schema, columns, self.name)
        keys = {key: rows[column] for key, column in prompt.entities.items()}
        asked = pa.table({**keys, TIME: _times(rows[self._timestamp], self._timestamp)})
        values = self._store.at(asked, prompt.names).to_pylist() if rows.num_rows else []
        filled = [
            None if instruction is None else prompt.fill(instruction, value)
            for instruction, value in zip(rows[_COLUMN].to_pylist(), values, strict=True)
        ]
        index = rows.schema.get_field_index(_COLUMN)
        field = rows.schema.field(index)
        rows = rows.set_column(index, field, pa.array(filled, field.type))
        stays = pc.is_valid(rows[_COLUMN])
        gone = pc.invert(stays)
        evidence = [
            _evidence(prompt, keys_of, value)
            for keys_of, value, text in zip(asked.to_pylist(), values, filled, strict=True)
            if text is None
        ]
        removed = removed_rows(
            rows.filter(gone)[ROW_ID], self.name, "no value", pa.array(evidence, pa.string())
        )
        return Outcome(rows.filter(stays), removed)


def _times(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """The rows' times in UTC; text is read as ISO 8601, a time without a zone as UTC.

    Raises:
        RecipeError: The column holds no times.
    """
    naive = pa.timestamp("us")
    try:
        if pa.types.is_timestamp(column.type):
            plain = column.type.tz is None
            times = column.cast(naive if plain else _UTC, safe=False)
            return pc.assume_timezone(times, "UTC") if plain else times
        if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
            raise pa.ArrowInvalid(f"it is {column.type}")
        zoned = pc.match_substring_regex(column, _ZONE)
        without = pc.if_else(zoned, None, column).cast(naive)
        return pc.coalesce(
            pc.if_else(zoned, column, None).cast(_UTC), pc.assume_timezone(without, "UTC")
        )
    except pa.ArrowInvalid as error:
        raise RecipeError(
            f"features.timestamp: column {name!r} holds no times: {str(error).splitlines()[0]}",
            "It must be a timestamp, or text such as 2026-11-24T12:00:00Z.",
        ) from error


def _evidence(prompt: Prompt, asked: dict[str, object], values: dict[str, object]) -> str:
    entity = ", ".join(f"{key}={asked[key]}" for key in prompt.entities)
    missing = ", ".join(prompt.missing(values)) or "instruction"  # type: ignore[arg-type]
    return f"{missing} of {entity} at {asked[TIME]}"
