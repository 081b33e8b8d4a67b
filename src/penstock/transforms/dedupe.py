"""Rows that say the same thing are kept once."""

from __future__ import annotations

from typing import ClassVar

import pyarrow as pa
from pydantic import Field

from penstock.sources.base import AnyOptions, Options
from penstock.transforms.base import KEY, ROW_ID, Outcome, removed_rows
from penstock.transforms.keys import row_keys


class ExactDedupeOptions(Options):
    """When two rows are the same."""

    columns: tuple[str, ...] = Field(
        ("instruction", "response"), min_length=1, description="Equal in all of these."
    )


class ExactDedupe:
    """Keep the first of equal rows, in ingest order.

    First come, first kept: a row that a later run takes in, from whatever source,
    never pushes out one that a model was already trained on.
    """

    name: ClassVar[str] = "dedupe"
    revision: ClassVar[int] = 1
    Options: ClassVar[AnyOptions] = ExactDedupeOptions
    by_first: ClassVar[bool] = True

    def __init__(self, options: ExactDedupeOptions) -> None:
        self._columns = options.columns

    def open(self) -> None:
        """There is nothing to load."""

    def key(self, rows: pa.Table) -> pa.Array:
        """A digest of the columns."""
        return row_keys(rows, self._columns, self.name)

    def keep(self, rows: pa.Table) -> Outcome:
        """Keep each key's first row; the ledger names it for the others."""
        import polars as pl

        keys = pl.DataFrame(
            {"key": pl.Series(rows[KEY].cast(pa.binary())), "id": pl.Series(rows[ROW_ID])}
        ).with_columns(
            is_first=pl.col("key").is_first_distinct(),
            first_id=pl.col("id").first().over("key"),
        )
        is_first = keys["is_first"].to_arrow()
        others = keys.filter(~pl.col("is_first"))
        evidence = ("the same as " + others["first_id"]).to_arrow()
        reason = f"same {', '.join(self._columns)} as an earlier row"
        removed = removed_rows(others["id"].to_arrow().cast("string"), self.name, reason, evidence)
        return Outcome(rows.filter(is_first), removed)
