"""Tokenize plain text, for continued pretraining: every token is learned.

A document ends in the token that ends generation, so that a model learns where
one document stops and another begins. However long it is, it stays one row here;
training cuts it into blocks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from penstock.sources.base import Options
from penstock.tokenizer import load_tokenizer
from penstock.transforms.base import ROW_ID, Outcome, removed_rows, require_text
from penstock.transforms.preflight import check_text
from penstock.transforms.templates import control_tokens
from penstock.transforms.tokenize import TOKENS


class TokenizeTextOptions(Options):
    """What to tokenize, and with what."""

    folder: Path = Field(description="A tokenizer that transformers can load.")
    column: str = Field(description="The column with the text.")


class TokenizeText:
    """Adds ``input_ids`` and ``labels`` (int32 lists, both the same) to each row."""

    name: ClassVar[str] = "tokenize"
    revision: ClassVar[int] = 1
    Options: ClassVar[type[Options]] = TokenizeTextOptions

    def __init__(self, options: TokenizeTextOptions) -> None:
        self._folder = options.folder
        self._column = options.column
        self._tokenizer: Any = None

    def open(self) -> None:
        """Load the tokenizer, once per worker.

        Raises:
            RecipeError: It has no token to end a document with.
        """
        self._tokenizer = load_tokenizer(self._folder)
        check_text(self._tokenizer, "The tokenizer")

    def __call__(self, rows: pa.Table) -> Outcome:
        """Tokenize; rows without text, or with a token that ends one, are removed."""
        require_text(rows.schema, [self._column], "prepare.text_column", "Name a column of text.")
        text = rows[self._column]
        is_blank = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(text), ""), True)
        blank = removed_rows(
            rows.filter(is_blank)[ROW_ID],
            self.name,
            f"{self._column} is empty",
            pc.if_else(pc.is_null(text.filter(is_blank)), "null", "blank"),
        )
        rows = rows.filter(pc.invert(is_blank))
        found = control_tokens(self._tokenizer, rows[self._column])
        is_forged = pc.is_valid(found)
        forged = removed_rows(
            rows.filter(is_forged)[ROW_ID],
            self.name,
            "holds a control token",
            found.filter(is_forged),
        )
        rows = rows.filter(pc.invert(is_forged))
        ids = self._encode(rows[self._column].to_pylist())
        wide = rows.append_column("input_ids", ids).append_column("labels", ids)
        return Outcome(wide, pa.concat_tables([blank, forged]))

    def _encode(self, texts: list[str]) -> pa.Array:
        if not texts:
            return pa.array([], TOKENS)
        end = self._tokenizer.eos_token_id
        encoded = self._tokenizer(texts, add_special_tokens=True)["input_ids"]
        return pa.array([ids if ids[-1:] == [end] else [*ids, end] for ids in encoded], TOKENS)
