"""Rows that are no use for training are removed, each with its reason."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ClassVar

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from penstock.errors import RecipeError
from penstock.sources.base import AnyOptions, Options
from penstock.transforms.base import (
    REMOVED_SCHEMA,
    ROW_ID,
    Outcome,
    removed_rows,
    require_text,
)

# Rows -> which are bad, shape (n,), and what shows it, shape (n,).
_Check = Callable[[pa.Table], tuple[pa.ChunkedArray, pa.ChunkedArray]]


class FilterOptions(Options):
    """What a row needs to stay."""

    columns: tuple[str, ...] = Field(
        ("instruction", "response"), description="Must hold more than white space."
    )
    min_characters: dict[str, int] = Field(default_factory=dict, description="By column.")
    max_characters: dict[str, int] = Field(default_factory=dict, description="By column.")
    min_quality: float | None = Field(
        None, description="Rows that have no score are not judged by it; NaN is below any."
    )
    quality_column: str = Field("quality_score", description="Where the score is.")


class Filter:
    """Remove rows that are empty, too short, too long or of low quality.

    The first fault found is the one that is recorded: emptiness, then length in
    Unicode characters, then quality.
    """

    name: ClassVar[str] = "filter"
    revision: ClassVar[int] = 2
    Options: ClassVar[AnyOptions] = FilterOptions

    def __init__(self, options: FilterOptions) -> None:
        self._options = options

    def open(self) -> None:
        """There is nothing to load."""

    def __call__(self, rows: pa.Table) -> Outcome:
        """Keep the rows without a fault."""
        removed = [REMOVED_SCHEMA.empty_table()]
        for reason, check in self._checks(rows.schema):
            bad, evidence = check(rows)
            bad = pc.fill_null(bad, False)
            if pc.any(bad).as_py():
                ids = rows[ROW_ID].filter(bad)
                removed.append(removed_rows(ids, self.name, reason, evidence.filter(bad)))
                rows = rows.filter(pc.invert(bad))
        return Outcome(rows, pa.concat_tables(removed))

    def _checks(self, schema: pa.Schema) -> list[tuple[str, _Check]]:
        options = self._options
        texts = [*options.columns, *options.min_characters, *options.max_characters]
        require_text(schema, texts, self.name, "Only text has a length; leave it out.")
        checks: list[tuple[str, _Check]] = []
        for column in options.columns:
            checks.append((f"{column} is empty", partial(_is_empty, column=column)))
        for column, least in options.min_characters.items():
            check = partial(_is_shorter, column=column, least=least)
            checks.append((f"{column} has fewer than {least} characters", check))
        for column, most in options.max_characters.items():
            check = partial(_is_longer, column=column, most=most)
            checks.append((f"{column} has more than {most} characters", check))
        if options.min_quality is not None and options.quality_column in schema.names:
            column, score = options.quality_column, options.min_quality
            _require_number(schema.field(column))
            checks.append((f"{column} is below {score:g}", partial(_is_below, column, score)))
        return checks


def _require_number(field: pa.Field) -> None:
    if not (pa.types.is_integer(field.type) or pa.types.is_floating(field.type)):
        raise RecipeError(
            f"filter: column {field.name!r} is {field.type}, not a number.",
            f"Give its source the option types: {{{field.name}: number}}.",
        )


def _is_empty(rows: pa.Table, column: str) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    null = pc.is_null(rows[column])
    blank = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(rows[column]), ""), True)
    return blank, pc.if_else(null, "null", "blank")


def _is_shorter(rows: pa.Table, column: str, least: int) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    length = pc.utf8_length(rows[column])
    return pc.less(length, least), length


def _is_longer(rows: pa.Table, column: str, most: int) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    length = pc.utf8_length(rows[column])
    return pc.greater(length, most), length


def _is_below(column: str, score: float, rows: pa.Table) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    # Not `less`: NaN is below nothing, and no score to keep a row by either.
    return pc.invert(pc.greater_equal(rows[column], score)), rows[column]
