"""Tokenize: a row becomes the token ids a model is trained on, and a loss mask.

The prompt is tokenized by itself, exactly as serving will do it, and the
response after it; so what the model sees in training is what it sees in use.
The loss is taken on the response and its end token only.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from penstock.errors import RecipeError
from penstock.sources.base import Options
from penstock.tokenizer import load_tokenizer
from penstock.transforms.base import ROW_ID, Outcome, removed_rows

IGNORED = -100  # torch's cross entropy leaves these labels out

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
        _preflight(self._tokenizer)

    def __call__(self, rows: pa.Table) -> Outcome:
        """Tokenize; rows that are too long, or forge a turn of their own, are removed."""
        clean, forged = self._without_control_tokens(rows)
        ids, labels = self._encode(clean)
        wide = clean.append_column("input_ids", ids).append_column("labels", labels)
        lengths = pc.list_value_length(ids)
        fits = pc.less_equal(lengths, self._max_length)
        long = wide.filter(pc.invert(fits))
        evidence = pc.cast(lengths.filter(pc.invert(fits)), pa.string())
        removed = removed_rows(
            long[ROW_ID],
            self.name,
            f"longer than {self._max_length} tokens",
            pc.binary_join_element_wise(evidence, pa.scalar("tokens"), " "),
        )
        return Outcome(wide.filter(fits), pa.concat_tables([forged, removed]))

    def _without_control_tokens(self, rows: pa.Table) -> tuple[pa.Table, pa.Table]:
        """Rows whose text holds a token that only the template may write, set apart.

        Tokenized, such a text would end its turn and begin another: a model
        trained on it learns that anybody may speak for the assistant.
        """
        text = pc.binary_join_element_wise(rows["instruction"], rows["response"], "\n")
        found = control_tokens(self._tokenizer, text)
        forged = pc.is_valid(found)
        bad = removed_rows(
            rows.filter(forged)[ROW_ID], self.name, "holds a control token", found.filter(forged)
        )
        return rows.filter(pc.invert(forged)), bad

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


def control_tokens(tokenizer: Any, text: pa.ChunkedArray) -> pa.ChunkedArray:
    """The first token in each text that only a template may write; null where there is none."""
    tokens = sorted(tokenizer.all_special_tokens, key=len, reverse=True)
    pattern = "(?P<token>" + "|".join(re.escape(token) for token in tokens) + ")"
    return pc.struct_field(pc.extract_regex(text, pattern), "token")


def render(tokenizer: Any, instruction: str, response: str) -> tuple[str, str]:
    """The conversation's text, cut where the response begins.

    Raises:
        RecipeError: The template does not put the prompt first.
    """
    turns = [{"role": "user", "content": instruction}, {"role": "assistant", "content": response}]
    prompt = tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(turns, tokenize=False)
    if not whole.startswith(prompt):
        raise RecipeError(
            "prepare.chat_template: the prompt alone is not the start of prompt and response.",
            "A template must add the response after what add_generation_prompt renders.",
        )
    return prompt, whole[len(prompt) :]


def _preflight(tokenizer: Any) -> None:
    """Refuse a template under which a model could not learn when to stop."""
    if not tokenizer.chat_template:
        raise RecipeError(
            "The tokenizer has no chat template.", "Set prepare.chat_template in the recipe."
        )
    _, completion = render(tokenizer, "a question", "an answer")
    ids = tokenizer(completion.rstrip("\n"), add_special_tokens=False)["input_ids"]
    if tokenizer.eos_token_id is None or tokenizer.eos_token_id not in ids:
        raise RecipeError(
            f"prepare.chat_template: the response is rendered as {completion!r}, "
            f"without the token that ends generation ({tokenizer.eos_token!r}).",
            "End the assistant's turn with {{ eos_token }}, or the model never learns to stop.",
        )
