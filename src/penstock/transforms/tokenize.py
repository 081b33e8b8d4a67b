"""Tokenize: a row becomes the token ids a model is trained on, and a loss mask.

The prompt is tokenized by itself, exactly as serving will do it, and the
response after it; so what the model sees in training is what it sees in use.
The loss is taken on the response and its end token only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from penstock.sources.base import Options
from penstock.tokenizer import IGNORED, load_tokenizer
from penstock.transforms.base import ROW_ID, Outcome, removed_rows
from penstock.transforms.preflight import check_chat
from penstock.transforms.templates import control_tokens, render

TOKENS = pa.list_(pa.int32())


class TokenizeOptions(Options):
    """What to tokenize with."""

    folder: Path = Field(description="A tokenizer that transformers can load.")
    max_length: int = Field(512, ge=8, description="Longer examples are removed, in tokens.")


class Tokenize:
    """Adds ``input_ids`` and ``labels`` (int32 lists of equal length) to each row.

    Raises:
        RecipeError: On the first rows, if the chat template cannot be trained
            with: the prompt is not the start of the conversation, or the
            response does not end in a token that ends generation.
    """

    name: ClassVar[str] = "tokenize"
    revision: ClassVar[int] = 1
    Options: ClassVar[type[Options]] = TokenizeOptions

    def __init__(self, options: TokenizeOptions) -> None:
        self._folder = options.folder
        self._max_length = options.max_length
        self._tokenizer: Any = None

    def open(self) -> None:
        """Load the tokenizer, once per worker."""
        self._tokenizer = load_tokenizer(self._folder)
        check_chat(self._tokenizer, "The tokenizer")

    def __call__(self, rows: pa.Table) -> Outcome:
        """Tokenize; rows that are too long or cannot be learned from are removed."""
        removed = []
        for check in (_no_instruction, _no_response, self._forged):
            rows, gone = _without(rows, *check(rows))
            removed.append(gone)
        ids, labels = self._encode(rows)
        rows = rows.append_column("input_ids", ids).append_column("labels", labels)
        for check in (self._too_long, self._mute):
            rows, gone = _without(rows, *check(rows))
            removed.append(gone)
        return Outcome(rows, pa.concat_tables(removed))

    def _forged(self, rows: pa.Table) -> _Faults:
        """Rows whose text holds a token that only the template may write.

        Tokenized, such a text would end its turn and begin another: a model
        trained on it learns that anybody may speak for the assistant.
        """
        text = pc.binary_join_element_wise(rows["instruction"], rows["response"], "\n")
        return "holds a control token", control_tokens(self._tokenizer, text)

    def _too_long(self, rows: pa.Table) -> _Faults:
        lengths = pc.list_value_length(rows["input_ids"])
        shown = pc.binary_join_element_wise(lengths.cast("string"), pa.scalar("tokens"), " ")
        fits = pc.less_equal(lengths, self._max_length)
        return f"longer than {self._max_length} tokens", pc.if_else(fits, _NOTHING, shown)

    def _mute(self, rows: pa.Table) -> _Faults:
        """Rows of which the template leaves nothing to learn."""
        labels = rows["labels"].combine_chunks()
        learned = np.append(0, np.cumsum(labels.flatten().to_numpy() != IGNORED))
        ends = np.append(0, np.cumsum(pc.list_value_length(labels).to_numpy()))
        is_mute = pa.array(np.diff(learned[ends]) == 0)
        return "has no token to learn", pc.if_else(is_mute, "0 tokens", _NOTHING)

    def _encode(self, rows: pa.Table) -> tuple[pa.Array, pa.Array]:
        prompts, completions = [], []
        pairs = zip(rows["instruction"].to_pylist(), rows["response"].to_pylist(), strict=True)
        for instruction, response in pairs:
            prompt, completion = render(self._tokenizer, instruction, response)
            prompts.append(prompt)
            completions.append(completion)
        if not prompts:
            return pa.array([], TOKENS), pa.array([], TOKENS)
        encode = self._tokenizer
        prompt_ids = encode(prompts, add_special_tokens=False)["input_ids"]
        completion_ids = encode(completions, add_special_tokens=False)["input_ids"]
        both = list(zip(prompt_ids, completion_ids, strict=True))
        ids = pa.array([head + tail for head, tail in both], TOKENS)
        labels = pa.array([[IGNORED] * len(head) + tail for head, tail in both], TOKENS)
        return ids, labels


# Not ``pa.scalar``, which imports pandas: most of a second for each process.
_NOTHING = pa.nulls(1, pa.string())[0]
# A reason, and for each row that it holds for, what shows it; null for all others.
_Faults: TypeAlias = tuple[str, pa.ChunkedArray]


def _no_instruction(rows: pa.Table) -> _Faults:
    return "instruction is empty", pc.if_else(pc.is_null(rows["instruction"]), "null", _NOTHING)


def _no_response(rows: pa.Table) -> _Faults:
    return "response is empty", pc.if_else(pc.is_null(rows["response"]), "null", _NOTHING)


def _without(rows: pa.Table, reason: str, evidence: pa.ChunkedArray) -> tuple[pa.Table, pa.Table]:
    """The rows without a fault, and the ledger rows of the others."""
    bad = pc.is_valid(evidence)
    gone = removed_rows(rows[ROW_ID].filter(bad), Tokenize.name, reason, evidence.filter(bad))
    return rows.filter(pc.invert(bad)), gone
