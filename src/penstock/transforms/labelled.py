"""Rows for a classifier: a text that the encoder can read whole, and a label."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from penstock.errors import RecipeError
from penstock.sources.base import Options
from penstock.tokenizer import load_tokenizer
from penstock.transforms.base import (
    ROW_ID,
    Outcome,
    removed_rows,
    require_columns,
    require_text,
)


class LabelledOptions(Options):
    """Which columns, and how much is read."""

    folder: Path = Field(description="The encoder's tokenizer.")
    text: str = Field(description="The column that is read.")
    label: str = Field(description="The column that says what it is.")
    max_length: int = Field(ge=1, description="Longer texts are removed, in tokens.")


class Labelled:
    """Makes labels text, and removes rows that teach nothing."""

    name: ClassVar[str] = "labelled"
    revision: ClassVar[int] = 1
    Options: ClassVar[type[Options]] = LabelledOptions

    def __init__(self, options: LabelledOptions) -> None:
        self._options = options
        self._tokenizer: Any = None

    def open(self) -> None:
        """Load the tokenizer, once per worker."""
        self._tokenizer = load_tokenizer(self._options.folder)

    def __call__(self, rows: pa.Table) -> Outcome:
        """Remove rows without text or label, and texts that would be cut."""
        text, label = self._options.text, self._options.label
        require_text(rows.schema, [text], "train.classifier.text", "Name a column of text.")
        require_columns(rows.schema, [label], "train.classifier.label")
        place = rows.column_names.index(label)
        rows = rows.set_column(place, label, _as_text(rows[label], label))
        removed = []
        for column in (text, label):
            rows, gone = self._without_blanks(rows, column)
            removed.append(gone)
        lengths = self._lengths(rows[text].to_pylist())
        is_long = pc.greater(lengths, self._options.max_length)
        long = removed_rows(
            rows.filter(is_long)[ROW_ID],
            self.name,
            f"longer than {self._options.max_length} tokens",
            pc.binary_join_element_wise(lengths.filter(is_long).cast("string"), "tokens", " "),
        )
        return Outcome(rows.filter(pc.invert(is_long)), pa.concat_tables([*removed, long]))

    def _without_blanks(self, rows: pa.Table, column: str) -> tuple[pa.Table, pa.Table]:
        is_blank = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(rows[column]), ""), True)
        blank = rows.filter(is_blank)
        shown = pc.if_else(pc.is_null(blank[column]), "null", "blank")
        gone = removed_rows(blank[ROW_ID], self.name, f"{column} is empty", shown)
        return rows.filter(pc.invert(is_blank)), gone

    def _lengths(self, texts: list[str]) -> pa.Array:
        encoded = self._tokenizer(texts, truncation=False)["input_ids"] if texts else []
        return pa.array([len(ids) for ids in encoded], pa.int64())


def _as_text(labels: pa.ChunkedArray, column: str) -> pa.ChunkedArray:
    kind = labels.type
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if not (is_text or pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
        raise RecipeError(
            f"train.classifier.label: the column {column!r} is of type {kind}.",
            "Labels are texts, whole numbers or booleans.",
        )
    return labels.cast("string")
