"""Embedding, reranking and classification by sentence-transformers.

A folder with a cross-encoder reranks; any other model's vectors serve all three.
Requests that come while a batch is computed share the next one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar, TypeVar

import numpy as np
from pydantic import Field, field_validator

from penstock.encoder import Encoder, Role, is_cross_encoder
from penstock.errors import InvalidRequest, RecipeError, ServingError
from penstock.head import ENCODER, Head, is_classifier
from penstock.hub import go_offline
from penstock.section import Section
from penstock.serving.backends.base import Backend, Capability, Floats, ModelFiles
from penstock.serving.backends.cross_encoder import CrossEncoder, Pair
from penstock.serving.batching import Batches
from penstock.serving.model_text import LOADING

Counted = TypeVar("Counted", str, Pair)

# Counting tokens of so much text takes 1 ms; more of it is counted in another
# thread, since the event loop has other requests to look after.
_SHORT_CHARS = 8_000


class SentenceTransformersOptions(Section):
    """What a recipe may set."""

    max_batch: int = Field(32, ge=1, description="Texts or pairs in a batch.")
    template: str = Field(
        "This text is about {}.",
        description="Of a classifier without a trained head: a label's words in a sentence.",
    )
    temperature: float = Field(
        0.05,
        gt=0,
        description="Of such a classifier: probabilities are the softmax of cosine / temperature.",
    )

    @field_validator("template")
    @classmethod
    def _has_a_place(cls, template: str) -> str:
        if template.count("{}") != 1:
            raise ValueError(f"template {template!r}: needs one {{}}, where the label goes")
        return template


class SentenceTransformersBackend(Backend):
    """One model: a cross-encoder, or an encoder, with a head if it classifies."""

    Options = SentenceTransformersOptions
    capabilities: ClassVar[frozenset[Capability]] = frozenset({"embed", "rerank", "classify"})

    def __init__(self, files: ModelFiles) -> None:
        self._files = files
        self._options = SentenceTransformersOptions.model_validate(files.options)
        self._encoder: Encoder | None = None
        self._pairs: CrossEncoder | None = None
        self._head: Head | None = None
        size = self._options.max_batch
        self._texts_line: Batches[str] = Batches(self._encode, size, "encoder")
        self._pairs_line: Batches[Pair] = Batches(self._score, size, "cross-encoder")

    def load(self) -> None:
        """Load the model and compute something with it."""
        go_offline()
        try:
            with LOADING:
                self._load()
        except RecipeError as error:
            raise ServingError(error.message, error.hint) from error

    @property
    def labels(self) -> tuple[str, ...]:
        """What the head tells apart."""
        return self._head.labels if self._head else ()

    async def embed(self, texts: list[str]) -> tuple[Floats, int]:
        """Embed texts, together with those of other requests."""
        return await self._vectors(texts, "text", "input")

    async def rerank(self, query: str, documents: list[str]) -> tuple[Floats, int]:
        """Score documents: by the cross-encoder, or by (1 + cosine) / 2 of vectors."""
        if self._pairs is not None:
            pairs = [(query, document) for document in documents]
            lengths = await _counted(self._pairs.num_tokens, pairs, self._pairs.limit, "documents")
            return await self._pairs_line.ask(pairs, lengths), sum(lengths)
        asked, found = await asyncio.gather(
            self._vectors([query], "query", "query"),
            self._vectors(documents, "document", "documents"),
        )
        scores = (1 + found[0] @ asked[0][0]) / 2
        return np.clip(scores, 0, 1).astype(np.float32), asked[1] + found[1]

    async def classify(self, texts: list[str]) -> tuple[Floats, int]:
        """Probabilities of the labels for each text."""
        if self._head is None:
            raise self._cannot("classify")
        vectors, num_tokens = await self._vectors(texts, "text", "input")
        return self._head.probabilities(vectors), num_tokens

    def close(self) -> None:
        """Free the model."""
        self._texts_line.close()
        self._pairs_line.close()
        self._encoder = self._pairs = None

    def _load(self) -> None:
        folder, task = self._files.path, self._files.task
        if is_cross_encoder(folder):
            if task != "rerank":
                raise ServingError(f"{folder} is a cross-encoder: it cannot {task}, only rerank.")
            self._pairs = CrossEncoder.load(folder)
            return
        trained = is_classifier(folder)
        self._encoder = Encoder.load(folder / ENCODER if trained else folder)
        if task == "classify":
            self._head = self._trained_head() if trained else self._zero_shot(self._encoder)

    def _trained_head(self) -> Head:
        head = Head.load(self._files.path)
        if self._files.labels:
            raise ServingError(
                f"{self._files.path} was trained to tell {', '.join(head.labels)} apart.",
                "Leave out `labels`: they are for a classifier that nobody trained.",
            )
        return head

    def _zero_shot(self, encoder: Encoder) -> Head:
        labels = self._files.labels
        if len(set(labels)) < max(2, len(labels)):
            raise ServingError(
                f"A classifier needs at least two labels, each once; received {list(labels)}.",
                "Name them under `labels`, or serve a version with a trained head.",
            )
        words = [self._options.template.replace("{}", label) for label in labels]
        return Head.zero_shot(labels, encoder.encode(words), self._options.temperature)

    async def _vectors(self, texts: list[str], role: Role, param: str) -> tuple[Floats, int]:
        encoder = self._encoder
        if encoder is None:
            raise self._cannot("embed")
        role = encoder.role(role)
        lengths = await _counted(
            partial(encoder.num_tokens, role=role), texts, encoder.limit, param
        )
        return await self._texts_line.ask(texts, lengths, role), sum(lengths)

    def _encode(self, role: Role, texts: list[str]) -> Floats:
        assert self._encoder is not None
        return self._encoder.encode(texts, role, self._options.max_batch)

    def _score(self, _: object, pairs: list[Pair]) -> Floats:
        assert self._pairs is not None
        return self._pairs.score(pairs, self._options.max_batch)


async def _counted(
    count: Callable[[list[Counted]], list[int]], items: list[Counted], limit: int, param: str
) -> list[int]:
    """Tokens of each item.

    Raises:
        InvalidRequest: One has too many: the library would cut it and read its beginning only.
    """
    short = _num_chars(items) <= _SHORT_CHARS
    lengths = count(items) if short else await asyncio.to_thread(count, items)
    for index, length in enumerate(lengths):
        if length > limit:
            raise InvalidRequest(
                f"Text {index} has {length} tokens; this model reads {limit}.",
                "Split the text.",
                param,
            )
    return lengths


def _num_chars(items: Sequence[str | Pair]) -> int:
    return sum(len(item) if isinstance(item, str) else len("".join(item)) for item in items)
