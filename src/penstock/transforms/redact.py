"""Personal data and secrets: out of the text, or rows that hold them out of the data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import AfterValidator, Field, model_validator

from penstock.errors import RecipeError
from penstock.registry import did_you_mean
from penstock.sources.base import AnyOptions, Options
from penstock.transforms import pii
from penstock.transforms.base import (
    REMOVED_SCHEMA,
    ROW_ID,
    Outcome,
    removed_rows,
    require_text,
)

if TYPE_CHECKING:
    import polars as pl

# The column that says how many of each kind a row held, and its type.
REDACTED = "redacted"
COUNTS = pa.struct([(name, pa.int32()) for name in pii.NAMES])


def _check_kinds(kinds: tuple[str, ...]) -> tuple[str, ...]:
    for kind in kinds:
        if kind not in pii.NAMES:
            raise ValueError(f"{kind!r} is not a kind.{did_you_mean(kind, pii.NAMES)}")
    return kinds


_Kinds = Annotated[tuple[str, ...], AfterValidator(_check_kinds)]


class RedactOptions(Options):
    """What to take out, and where."""

    columns: tuple[str, ...] = Field(
        ("instruction", "response"), min_length=1, description="Text columns to search."
    )
    kinds: _Kinds = Field(pii.NAMES, min_length=1, description="What to look for.")
    remove: _Kinds = Field(
        (), description="Of these kinds, rows that hold one are removed instead of changed."
    )
    placeholder: str = Field(
        "[{kind}]", description="What stands in the place of a find, such as `[EMAIL]`."
    )

    @model_validator(mode="after")
    def _fits(self) -> RedactOptions:
        import polars as pl

        for kind in self.remove:
            if kind not in self.kinds:
                raise ValueError(f"remove: {kind!r} is not among kinds")
        try:
            marks = [self.placeholder.format(kind=name.upper()) for name in pii.NAMES]
        except (LookupError, ValueError, AttributeError):
            raise ValueError(
                f"placeholder {self.placeholder!r} may hold {{kind}} and no other braces"
            ) from None
        _, found = pii.redact(pl.Series(marks), pii.KINDS, "")
        if found:
            raise ValueError(f"placeholder {self.placeholder!r} looks like {', '.join(found)}")
        return self


class Redact:
    """Put typed placeholders in the place of personal data and secrets.

    A changed row keeps its id. How many of each kind it held is in the column
    ``redacted``; what they were is nowhere. Doing it twice changes nothing.
    """

    name: ClassVar[str] = "redact"
    revision: ClassVar[int] = 1
    Options: ClassVar[AnyOptions] = RedactOptions

    def __init__(self, options: RedactOptions) -> None:
        self._options = options

    def open(self) -> None:
        """There is nothing to load."""

    def __call__(self, rows: pa.Table) -> Outcome:
        """Redact the text columns; rows that hold a kind to remove by go."""
        require_text(rows.schema, self._options.columns, self.name)
        totals = _counts_so_far(rows)
        here: dict[tuple[str, str], pl.Series] = {}
        for column in self._options.columns:
            rows, counts = self._redacted(rows, column)
            for kind, count in counts.items():
                here[kind, column] = count
                totals[kind] = totals[kind] + count
        rows = _with_counts(rows, totals)
        return self._without_removed(rows, here)

    @property
    def _kinds(self) -> list[pii.Kind]:
        """Looked up and not kept: a compiled pattern cannot go to another process."""
        return [kind for kind in pii.KINDS if kind.name in self._options.kinds]

    def _redacted(self, rows: pa.Table, column: str) -> tuple[pa.Table, dict[str, pl.Series]]:
        import polars as pl

        index = rows.schema.get_field_index(column)
        field = rows.schema.field(index)
        text = pl.Series(rows[column], dtype=pl.String)
        clean, counts = pii.redact(text, self._kinds, self._options.placeholder)
        return rows.set_column(index, field, clean.to_arrow().cast(field.type)), counts

    def _without_removed(self, rows: pa.Table, counts: dict[tuple[str, str], pl.Series]) -> Outcome:
        """Set rows apart by the first kind found; the evidence says where, never what."""
        import polars as pl

        gone = pl.zeros(rows.num_rows, pl.Boolean, eager=True)
        removed = [REMOVED_SCHEMA.empty_table()]
        for kind in self._kinds:
            if kind.name not in self._options.remove:
                continue
            for (name, column), count in counts.items():
                bad = (count > 0) & ~gone
                if name != kind.name or not bad.any():
                    continue
                ids = rows[ROW_ID].filter(bad.to_arrow())
                evidence = (count.filter(bad).cast(pl.String) + f" in {column}").to_arrow()
                removed.append(removed_rows(ids, self.name, f"holds {kind.meaning}", evidence))
                gone = gone | bad
        return Outcome(rows.filter(pc.invert(gone.to_arrow())), pa.concat_tables(removed))


def _counts_so_far(rows: pa.Table) -> dict[str, pl.Series]:
    """Zeros, or what an earlier ``redact`` has counted on these rows."""
    import polars as pl

    if REDACTED not in rows.schema.names:
        none = pl.zeros(rows.num_rows, pl.Int32, eager=True)
        return dict.fromkeys(pii.NAMES, none)
    if rows.schema.field(REDACTED).type != COUNTS:
        raise RecipeError(
            f"redact: the rows have a column {REDACTED!r} already.", "Rename it in the source."
        )
    column = rows[REDACTED].combine_chunks()
    return {name: pl.Series(column.field(name), dtype=pl.Int32) for name in pii.NAMES}


def _with_counts(rows: pa.Table, totals: dict[str, pl.Series]) -> pa.Table:
    arrays = [totals[name].to_arrow().cast(pa.int32()) for name in pii.NAMES]
    counts = pa.StructArray.from_arrays(arrays, fields=list(COUNTS))
    if REDACTED in rows.schema.names:
        return rows.set_column(rows.schema.get_field_index(REDACTED), REDACTED, counts)
    return rows.append_column(REDACTED, counts)
