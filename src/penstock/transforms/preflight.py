"""What must hold of a tokenizer before any row is prepared with it.

Each of these mistakes trains without a word of complaint, and shows only when the
model is served: it never stops, answers in headers, or speaks for its user.
"""

from __future__ import annotations

from typing import Any

from penstock.errors import RecipeError
from penstock.transforms.templates import render

_QUESTION, _ANSWER = "What does the gate hold?", "It holds the water."
_TEMPLATE = "prepare.chat_template"


def check_chat(tokenizer: Any, owner: str) -> None:
    """Refuse a chat template that cannot be trained with.

    Args:
        tokenizer: With the template it is going to have.
        owner: What to call the model it belongs to.

    Raises:
        RecipeError: There is none, it fails, or under it a row would have no token
            to learn, or none that ends the turn.
    """
    if not tokenizer.chat_template:
        raise RecipeError(
            f"{owner} has no chat template.",
            f"Set {_TEMPLATE}, or prepare.text_column to train on plain text.",
        )
    prompt, completion = _rendered(tokenizer)
    if _QUESTION not in prompt:
        raise RecipeError(
            f"{_TEMPLATE}: the prompt is rendered as {prompt!r}, without what the user says.",
            "Render the messages of the role 'user'.",
        )
    if _ANSWER not in completion:
        raise RecipeError(
            f"{_TEMPLATE}: the response is rendered as {completion!r}, without what the "
            "assistant says: a row would have no token to learn.",
            "Render the messages of the role 'assistant'.",
        )
    _check_end(tokenizer, completion)
    _check_start(tokenizer, prompt, completion)


def check_text(tokenizer: Any, owner: str) -> None:
    """Refuse a tokenizer that cannot end a document.

    Raises:
        RecipeError: It has no token for that.
    """
    if tokenizer.eos_token_id is None:
        raise RecipeError(
            f"{owner} has no token that ends a text (eos_token).",
            "Start from a base model whose tokenizer has one.",
        )


def check_vocabulary(tokenizer: Any, num_embeddings: int, owner: str) -> None:
    """Refuse a tokenizer with tokens that a model has no embedding for.

    Raises:
        RecipeError: It has.
    """
    needed = max(tokenizer.get_vocab().values(), default=-1) + 1
    if needed > num_embeddings:
        raise RecipeError(
            f"{owner} has {num_embeddings:,} embeddings, but the tokenizer that comes with it "
            f"has tokens up to number {needed - 1:,}.",
            "Put the tokenizer that the model was trained with beside it.",
        )


def _rendered(tokenizer: Any) -> tuple[str, str]:
    from jinja2 import TemplateError

    try:
        return render(tokenizer, _QUESTION, _ANSWER)
    except (TemplateError, TypeError) as error:
        raise RecipeError(
            f"{_TEMPLATE}: it fails on a question and an answer: {error}",
            "It is given messages with 'role' ('user', 'assistant') and 'content'.",
        ) from error


def _check_start(tokenizer: Any, prompt: str, completion: str) -> None:
    """What stands before the response must be asked for, or a model learns to write it."""
    turns = [{"role": "user", "content": _QUESTION}]
    unasked = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=False)
    head = completion[: completion.index(_ANSWER)]
    if unasked == prompt and head.strip():
        raise RecipeError(
            f"{_TEMPLATE}: the response is rendered as {completion!r}, and no prompt ends in "
            f"{head!r}: the model would learn to write that itself.",
            f"Add {{% if add_generation_prompt %}}{head}{{% endif %}} at the end.",
        )


def _check_end(tokenizer: Any, completion: str) -> None:
    tail = completion[completion.index(_ANSWER) + len(_ANSWER) :].rstrip()
    ids = tokenizer(tail, add_special_tokens=False)["input_ids"]
    if tokenizer.eos_token_id is None or tokenizer.eos_token_id not in ids:
        raise RecipeError(
            f"{_TEMPLATE}: the response is rendered as {completion!r}, "
            f"without the token that ends generation ({tokenizer.eos_token!r}).",
            "End the assistant's turn with {{ eos_token }}, or the model never learns to stop.",
        )
