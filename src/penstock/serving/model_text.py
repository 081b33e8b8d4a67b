"""The text side of one model version: tokenizer, chat template, context length.

Model folders may come from strangers. Nothing here runs code that a folder
brings along: ``trust_remote_code`` is off, and the chat template is rendered
by transformers' sandboxed Jinja environment.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.errors import InvalidRequest, ServingError
from penstock.hub import go_offline
from penstock.prompt import Prompt
from penstock.registry import require

# transformers replaces a method of its base class while it loads a model, and restores it
# after; two threads that load at once can leave it replaced, and weights are tied no more.
LOADING = threading.Lock()

_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "n_ctx")


@dataclass(frozen=True)
class ModelText:
    """Turns text into token ids and back for one model.

    Attributes:
        tokenizer: A transformers tokenizer.
        context_length: Tokens of prompt and answer together.
        vocab_size: Valid ids are below this.
        eos_ids: Tokens that end an answer.
        prompt: How the features of a request's entity enter its prompt; None
            for a model that was trained without features.
    """

    tokenizer: Any
    context_length: int
    vocab_size: int
    eos_ids: frozenset[int]
    prompt: Prompt | None = None

    @classmethod
    def load(cls, folder: Path) -> ModelText:
        """Read tokenizer and limits from a transformers model folder.

        Raises:
            ServingError: The folder has no readable config or tokenizer.
        """
        config = _read_json(folder / "config.json")
        if config is None:
            raise ServingError(
                f"{folder} is not a model folder: it has no config.json.",
                "Serve a folder written by save_pretrained().",
            )
        go_offline()
        transformers = require("transformers", "serve")
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        except (OSError, ValueError, KeyError) as error:
            raise ServingError(f"{folder} has no tokenizer that can be loaded: {error}") from error
        # The first call switches truncation off; from then on threads may share it.
        tokenizer.encode("warm")
        return cls(
            tokenizer,
            _context_length(config, tokenizer),
            len(tokenizer),
            _eos_ids(folder, config, tokenizer),
            Prompt.load(folder),
        )

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of plain text, with the special tokens the model expects around it."""
        return tuple(self.tokenizer.encode(text)) or self._bos()

    def checked(self, token_ids: Sequence[int]) -> tuple[int, ...]:
        """A prompt that came as token ids.

        Raises:
            InvalidRequest: An id is not in the vocabulary.
        """
        for token_id in token_ids:
            if token_id >= self.vocab_size:
                raise InvalidRequest(
                    f"Token id {token_id} is not in the vocabulary of {self.vocab_size}.",
                    param="prompt",
                )
        return tuple(token_ids)

    def encode_chat(self, messages: Sequence[dict[str, str]]) -> tuple[int, ...]:
        """Token ids of a conversation, ready for the assistant's next turn.

        Args:
            messages: ``{"role": ..., "content": ...}``, oldest first.

        Raises:
            InvalidRequest: The model has no chat template, or it refuses the conversation.
        """
        if not self.tokenizer.chat_template:
            raise InvalidRequest(
                "This model has no chat template.", "Send the text to /v1/completions.", "messages"
            )
        jinja2 = require("jinja2", "serve")
        try:
            # Only the template may write control tokens: what reads like one in
            # a message is text, or a user could speak as the system.
            token_ids = self.tokenizer.apply_chat_template(
                list(messages),
                add_generation_prompt=True,
                sanitize_control_tokens=True,
                return_dict=False,
            )
        except jinja2.TemplateError as error:
            raise InvalidRequest(
                f"The model's chat template refuses these messages: {error.message}",
                param="messages",
            ) from error
        return tuple(token_ids) or self._bos()

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of the ids, without special tokens."""
        text: str = self.tokenizer.decode(
            token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def tokens(self, token_ids: Sequence[int]) -> list[str]:
        """The vocabulary's own spelling of each id."""
        spelled: list[str] = self.tokenizer.convert_ids_to_tokens(list(token_ids))
        return spelled

    def _bos(self) -> tuple[int, ...]:
        if self.tokenizer.bos_token_id is None:
            raise InvalidRequest("The prompt is empty.", param="prompt")
        return (self.tokenizer.bos_token_id,)


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _context_length(config: dict[str, Any], tokenizer: Any) -> int:
    for section in (config, config.get("text_config") or {}):
        for key in _CONTEXT_KEYS:
            if isinstance(section.get(key), int):
                return int(section[key])
    # transformers writes 1e30 where it does not know.
    if tokenizer.model_max_length < 10_000_000:
        return int(tokenizer.model_max_length)
    raise ServingError(
        "The model's config names no context length.",
        f"Add one of {', '.join(_CONTEXT_KEYS)} to its config.json.",
    )


def _eos_ids(folder: Path, config: dict[str, Any], tokenizer: Any) -> frozenset[int]:
    """What transformers' own ``generate`` stops at: generation config, config, tokenizer."""
    generation = _read_json(folder / "generation_config.json") or {}
    for eos in (generation.get("eos_token_id"), config.get("eos_token_id"), tokenizer.eos_token_id):
        if eos is not None:
            return frozenset([eos] if isinstance(eos, int) else eos)
    return frozenset()
