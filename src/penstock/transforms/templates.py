"""What a chat template makes of a row, and which tokens only a template may write."""

from __future__ import annotations

import re
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from penstock.errors import RecipeError


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
