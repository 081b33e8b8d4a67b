"""Embeddings by sentence-transformers, of unit length as OpenAI's are."""

from __future__ import annotations

import asyncio
import copy
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from penstock.errors import InvalidRequest, ServingError
from penstock.registry import require
from penstock.section import Section
from penstock.serving.backends.base import Backend, Capability, ModelFiles
from penstock.serving.model_text import go_offline

Vectors = NDArray[np.float32]


@dataclass
class _Waiting:
    """A request whose texts have not been embedded yet."""

    texts: list[str]
    answer: asyncio.Future[Vectors]


class SentenceTransformersOptions(Section):
    """What a recipe may set."""

    max_batch: int = Field(32, ge=1, description="Texts in a batch.")


class SentenceTransformersBackend(Backend):
    """One embedding model; requests that come while it computes share the next batch."""

    Options = SentenceTransformersOptions
    capabilities: ClassVar[frozenset[Capability]] = frozenset({"embed"})

    def __init__(self, files: ModelFiles) -> None:
        self._files = files
        options = SentenceTransformersOptions.model_validate(files.options)
        self._max_batch = options.max_batch
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sentence-transformers")
        self._waiting: list[_Waiting] = []
        self._working: asyncio.Task[None] | None = None
        self._model: Any = None

    def load(self) -> None:
        """Load the model and embed a word."""
        go_offline()
        sentence_transformers = require("sentence_transformers", "serve")
        try:
            self._model = sentence_transformers.SentenceTransformer(
                str(self._files.path),
                device="cpu",
                local_files_only=True,
                trust_remote_code=False,
                model_kwargs={"use_safetensors": True},
            )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise ServingError(
                f"sentence-transformers cannot load {self._files.path}: {error}"
            ) from error
        # Its own copy: the model's switches truncation on in the computing thread.
        self._counter = copy.deepcopy(self._model.tokenizer)
        self._num_tokens(["warm"])
        self._encode(["warm"])

    async def embed(self, texts: list[str]) -> tuple[Vectors, int]:
        """Embed texts, together with those of other requests."""
        lengths = await asyncio.to_thread(self._num_tokens, texts)
        limit = self._model.max_seq_length
        for index, length in enumerate(lengths):
            if length > limit:
                # The library would cut it off and embed the beginning only.
                raise InvalidRequest(
                    f"Text {index} has {length} tokens; this model reads {limit}.",
                    "Split the text.",
                    "input",
                )
        waiting = _Waiting(texts, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        if self._working is None or self._working.done():
            self._working = asyncio.create_task(self._work())
        return await waiting.answer, sum(lengths)

    def close(self) -> None:
        """Free the model."""
        self._thread.shutdown()
        self._model = None

    def _num_tokens(self, texts: list[str]) -> list[int]:
        encoded = self._counter(texts, truncation=False, padding=False)
        return [len(ids) for ids in encoded["input_ids"]]

    async def _work(self) -> None:
        """Embed what waits, batch after batch, until nothing does."""
        loop = asyncio.get_running_loop()
        while batch := self._next_batch():
            texts = [text for waiting in batch for text in waiting.texts]
            try:
                vectors = await loop.run_in_executor(self._thread, self._encode, texts)
            except Exception as error:
                _fail(batch, error)
            else:
                _hand_out(batch, vectors)

    def _next_batch(self) -> list[_Waiting]:
        """Whole requests, first come first served, up to a batch of texts but at least one."""
        batch: list[_Waiting] = []
        num_texts = 0
        while self._waiting:
            waiting = self._waiting[0]
            if batch and num_texts + len(waiting.texts) > self._max_batch:
                break
            self._waiting.pop(0)
            if not waiting.answer.done():
                batch.append(waiting)
                num_texts += len(waiting.texts)
        return batch

    def _encode(self, texts: list[str]) -> Vectors:
        vectors: Vectors = self._model.encode(
            texts,
            batch_size=self._max_batch,
            convert_to_numpy=True,
            normalize_embeddings=True,
            show_progress_bar=False,
        )
        return np.asarray(vectors, dtype=np.float32)


def _hand_out(batch: list[_Waiting], vectors: Vectors) -> None:
    start = 0
    for waiting in batch:
        end = start + len(waiting.texts)
        if not waiting.answer.done():
            waiting.answer.set_result(vectors[start:end])
        start = end


def _fail(batch: list[_Waiting], error: Exception) -> None:
    for waiting in batch:
        if not waiting.answer.done():
            failure = ServingError("The embedding model failed.")
            failure.__cause__ = error
            waiting.answer.set_exception(failure)
