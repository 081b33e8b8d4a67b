"""What a backend is: the thing that computes, for one model version.

The gateway owns routing, limits, metrics and identity; a backend only turns
prompts into tokens, texts into vectors, scores or labels. A backend declares what
it can do, and the gateway refuses the rest before it gets here. To add one, write a
class that inherits ``Backend``, name it in ``registry.BUILTIN`` (or in a recipe as
``"module:Object"``), and pass ``tests/conformance/test_backends.py``.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from penstock.errors import ServingError
from penstock.section import Section
from penstock.serving.model_text import ModelText

Capability = Literal["generate", "embed", "rerank", "classify"]
FinishReason = Literal["stop", "length", "content_filter"]
Floats: TypeAlias = NDArray[np.float32]
Turn: TypeAlias = Mapping[str, str]


@dataclass(frozen=True)
class Generation:
    """One request to generate, already validated by the gateway.

    Attributes:
        prompt_ids: The prompt's token ids, special tokens included; at least one, but
            none for a backend that reads text.
        max_tokens: At most this many new tokens, at least 1; prompt and answer
            together fit the model's context.
        temperature: 0 is greedy.
        top_p: In (0, 1].
        stop: Texts that end the answer and are not part of it.
        seed: Makes sampling repeatable where the backend can.
        text: The prompt of a plain completion, for a backend that reads text.
        turns: The conversation, oldest first, for a backend that reads text.
        open_ended: Nobody asked for ``max_tokens``: a backend that knows the context's
            length better may write on.
    """

    prompt_ids: tuple[int, ...]
    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    text: str | None = None
    turns: tuple[Turn, ...] = ()
    open_ended: bool = False


@dataclass(frozen=True)
class Usage:
    """Token counts as a server elsewhere gave them.

    Attributes:
        prompt_tokens: Read.
        completion_tokens: Written, all chunks together.
    """

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Chunk:
    """A piece of an answer as it grows.

    Attributes:
        text: New text, complete characters only.
        token_ids: The new tokens behind it, without the one that ends the text; none
            if a server elsewhere does not tell.
        finish_reason: Set on the last chunk, and only there.
        usage: On the last chunk of a server elsewhere that counts.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    usage: Usage | None = None


@dataclass(frozen=True)
class Scaling:
    """How many copies of a model there may be, for backends that scale.

    Attributes:
        min_replicas: At least so many.
        max_replicas: At most so many.
        target_ongoing_requests: More in flight for each copy than this: another copy.
        num_cpus: Cores of one copy.
        num_gpus: GPUs of one copy; may be a fraction.
    """

    min_replicas: int = 1
    max_replicas: int = 1
    target_ongoing_requests: float = 5
    num_cpus: float = 1
    num_gpus: float = 0


@dataclass(frozen=True)
class ModelFiles:
    """What a backend loads.

    Attributes:
        folder: A transformers model folder (config, safetensors, tokenizer); None for a
            model that lives in a server elsewhere.
        cache: A folder for what the backend derives from it (a converted model);
            no other model's files are ever put there.
        options: What the user set for this backend.
        label: Names the version among all that are loaded: letters, digits and dashes.
        source: What a server elsewhere calls the model.
        labels: Of a classifier without a trained head: what texts may be about.
        task: What the gateway will ask of it.
        scaling: Copies and what they take.
        max_concurrency: The gateway sends at most this many requests at once.
        recipe_folder: Where relative paths in options start.
        longest_answer_s: The gateway waits for no answer longer than this.
    """

    folder: Path | None
    cache: Path
    options: dict[str, object] = field(default_factory=dict)
    label: str = "model"
    source: str | None = None
    labels: tuple[str, ...] = ()
    task: Capability = "generate"
    scaling: Scaling = Scaling()
    max_concurrency: int = 16
    recipe_folder: Path = Path()
    longest_answer_s: float = 60.0

    @property
    def path(self) -> Path:
        """The folder.

        Raises:
            ServingError: There is none.
        """
        if self.folder is None:
            raise ServingError(
                f"The model {self.source!r} has no files here.",
                "Serve a registered version or a folder, or choose the backend `openai`.",
            )
        return self.folder

    @cached_property
    def text(self) -> ModelText:
        """The model's tokenizer and limits, loaded once for gateway and backend."""
        return ModelText.load(self.path)


class NoOptions(Section):
    """Of a backend without any."""


class Backend(Protocol):
    """One loaded model version.

    Attributes:
        Options: What a recipe may set for it.
        capabilities: What it can do.
        reads: ``tokens`` of the model's own tokenizer, made by the gateway, or ``text``,
            for a server elsewhere whose tokenizer is not here.
        elsewhere: It computes in another process, and may be loaded beside other models.
    """

    Options: ClassVar[type[Section]] = NoOptions
    capabilities: ClassVar[frozenset[Capability]]
    reads: ClassVar[Literal["tokens", "text"]] = "tokens"
    elsewhere: ClassVar[bool] = False

    def __init__(self, files: ModelFiles) -> None: ...

    def load(self) -> None:
        """Load the model and warm it up; blocking, called in a thread.

        Raises:
            ServingError: The files are not a model this backend can load.
            MissingExtra: A library it needs is not installed.
        """
        ...

    @property
    def labels(self) -> tuple[str, ...]:
        """What a classifier tells apart, in the order of its probabilities."""
        return ()

    def generate(self, request: Generation) -> AsyncGenerator[Chunk, None]:
        """Stream one answer. Closing the iterator cancels the computation."""
        raise self._cannot("generate")

    async def embed(self, texts: list[str]) -> tuple[Floats, int]:
        """Embed texts: float32 vectors of shape (len(texts), dim), and the tokens read.

        Raises:
            InvalidRequest: A text is longer than the model reads.
        """
        raise self._cannot("embed")

    async def rerank(self, query: str, documents: list[str]) -> tuple[Floats, int]:
        """Relevance in [0, 1] of each document, shape (len(documents),), and the tokens read.

        Raises:
            InvalidRequest: A pair is longer than the model reads.
        """
        raise self._cannot("rerank")

    async def classify(self, texts: list[str]) -> tuple[Floats, int]:
        """Probabilities, shape (len(texts), len(labels)), and the tokens read.

        Raises:
            InvalidRequest: A text is longer than the model reads.
        """
        raise self._cannot("classify")

    async def healthy(self) -> bool:
        """Whether it can answer now; asked every half second of what runs elsewhere."""
        return True

    def close(self) -> None:
        """Free the model. No request is in flight when this is called."""
        ...

    def _cannot(self, capability: str) -> ServingError:
        return ServingError(f"{type(self).__name__} cannot {capability}.")
