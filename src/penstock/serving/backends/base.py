"""What a backend is: the thing that computes, for one model version.

The gateway owns routing, limits, metrics and identity; a backend only turns
prompts into tokens or texts into vectors. A backend declares what it can do,
and the gateway refuses the rest before it gets here.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from penstock.serving.model_text import ModelText

Capability = Literal["generate", "embed", "rerank", "classify"]
FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Generation:
    """One request to generate, already validated by the gateway.

    Attributes:
        prompt_ids: The prompt's token ids, special tokens included; at least one.
        max_tokens: At most this many new tokens, at least 1; prompt and answer
            together fit the model's context.
        temperature: 0 is greedy.
        top_p: In (0, 1].
        stop: Texts that end the answer and are not part of it.
        seed: Makes sampling repeatable where the backend can.
    """

    prompt_ids: tuple[int, ...]
    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None


@dataclass(frozen=True)
class Chunk:
    """A piece of an answer as it grows.

    Attributes:
        text: New text, complete characters only.
        token_ids: The new tokens behind it, without the one that ends the text.
        finish_reason: Set on the last chunk, and only there.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None


@dataclass(frozen=True)
class ModelFiles:
    """What a backend loads.

    Attributes:
        folder: A transformers model folder (config, safetensors, tokenizer).
        cache: A folder for what the backend derives from it (a converted model);
            no other model's files are ever put there.
        options: What the user set for this backend.
    """

    folder: Path
    cache: Path
    options: dict[str, object] = field(default_factory=dict)

    @cached_property
    def text(self) -> ModelText:
        """The model's tokenizer and limits, loaded once for gateway and backend."""
        return ModelText.load(self.folder)


class Backend(Protocol):
    """One loaded model version."""

    capabilities: ClassVar[frozenset[Capability]]

    def __init__(self, files: ModelFiles) -> None: ...

    def load(self) -> None:
        """Load the model and warm it up; blocking, called in a thread.

        Raises:
            ServingError: The files are not a model this backend can load.
            MissingExtra: A library it needs is not installed.
        """
        ...

    def generate(self, request: Generation) -> AsyncGenerator[Chunk, None]:
        """Stream one answer. Closing the iterator cancels the computation."""
        ...

    async def embed(self, texts: list[str]) -> tuple[NDArray[np.float32], int]:
        """Embed texts: float32 vectors of shape (len(texts), dim), and the tokens read.

        Raises:
            InvalidRequest: A text is longer than the model reads.
        """
        ...

    def close(self) -> None:
        """Free the model. No request is in flight when this is called."""
        ...
