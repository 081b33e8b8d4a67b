"""Any server that speaks OpenAI's API: a provider's, a vLLM, another Penstock.

Answers are always asked for as streams, so that a client who leaves is noticed there:
the connection is closed. Reranking is asked for in the shape that Jina, Cohere and
vLLM share, classification in vLLM's and Jina's.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import logging
import os
import re
from collections.abc import AsyncGenerator, Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import AfterValidator, Field

from penstock.errors import InvalidRequest, RecipeError, ServingError
from penstock.section import Section
from penstock.serving.answer_text import StopMatcher
from penstock.serving.backends.addresses import checked_url
from penstock.serving.backends.base import (
    Backend,
    Capability,
    Chunk,
    FinishReason,
    Floats,
    Generation,
    ModelFiles,
    Usage,
)
from penstock.serving.backends.upstream import NoSuchPath, Upstream, nonsense
from penstock.serving.token_counts import believed_read

logger = logging.getLogger(__name__)

# No vocabulary we know has a longer token: 128 spaces.
_MAX_TOKEN_BYTES = 128
_MAX_OPEN_ENDED_BYTES = 16 * 2**20
_BROKE_OFF = "The server behind this model broke off its answer."
_NAME = re.compile(r"[A-Za-z0-9-]+")
# The key has a place of its own, and these say how a request is sent.
_TAKEN_HEADERS = frozenset(
    {
        "accept-encoding",
        "api-key",
        "authorization",
        "connection",
        "content-length",
        "content-type",
        "cookie",
        "host",
        "proxy-authorization",
        "transfer-encoding",
        "upgrade",
        "x-api-key",
    }
)
_REASONS: dict[str, FinishReason] = {"length": "length", "content_filter": "content_filter"}

# What a server does not know; found out by its refusals.
Quirk = Literal["stream_options", "max_tokens", "encoding_format", "labels"]
_OPTIONAL: tuple[Quirk, ...] = ("stream_options", "encoding_format", "labels")


def _checked_headers(headers: dict[str, str]) -> dict[str, str]:
    for name, value in headers.items():
        if not _NAME.fullmatch(name) or not value.isascii() or not value.isprintable():
            raise ValueError(f"{name!r} is no header, or its value holds control characters")
        if name.lower() in _TAKEN_HEADERS:
            raise ValueError(f"{name!r} cannot be set here; a key goes into api_key_env")
    return headers


class OpenAIOptions(Section):
    """Where the server is, and how to ask it."""

    url: Annotated[str, AfterValidator(checked_url)] = Field(
        description="Of the server's API, with its /v1."
    )
    api_key_env: str | None = Field(
        None, min_length=1, description="The environment variable that holds the key."
    )
    timeout_s: float = Field(30.0, gt=0, description="For the next byte of an answer.")
    headers: Annotated[dict[str, str], AfterValidator(_checked_headers)] = Field(
        {}, description="Sent with every request; keys have no place here."
    )


class OpenAIBackend(Backend):
    """One model of a server elsewhere."""

    Options = OpenAIOptions
    capabilities: ClassVar[frozenset[Capability]] = frozenset(
        {"generate", "embed", "rerank", "classify"}
    )
    reads: ClassVar[Literal["tokens", "text"]] = "text"
    elsewhere: ClassVar[bool] = True

    def __init__(self, files: ModelFiles) -> None:
        self._files = files
        self._options = OpenAIOptions.model_validate(files.options)
        self._upstream = Upstream(self._options.url)
        self._quirks: frozenset[Quirk] = frozenset()
        self._at_root: set[str] = set()

    def load(self) -> None:
        """Look for the key. The server is not asked: it may come up later.

        Raises:
            RecipeError: The key is missing, or nothing says which model of the server is meant.
        """
        options, files = self._options, self._files
        if files.source is None:
            raise RecipeError(
                f"{files.label}: nothing says what {options.url} calls the model.",
                "Set `source` beside `backend`; versions that are registered here are not there.",
            )
        if files.task == "classify" and not files.labels:
            raise RecipeError(
                f"{files.label}: a classifier elsewhere does not say what it tells apart.",
                "Set `labels`, in the order of its probabilities.",
            )
        key = key_of(options.api_key_env)
        self._upstream = Upstream(
            options.url, key, options.headers, options.timeout_s, files.max_concurrency
        )

    @property
    def labels(self) -> tuple[str, ...]:
        """As the recipe names them."""
        return self._files.labels

    async def generate(self, request: Generation) -> AsyncGenerator[Chunk, None]:
        """Stream one answer. Closing the iterator closes the connection."""
        answer = _Answer(request)
        async with contextlib.aclosing(self._events(request, answer)) as events:
            async for event in events:
                if text := answer.feed(event):
                    yield Chunk(text)
                if answer.stopped:
                    break
        yield answer.last()

    async def embed(self, texts: list[str]) -> tuple[Floats, int]:
        """Embed texts."""
        body = {"model": self._files.source, "input": texts}
        # Base64 is a third of the bytes of numbers in JSON.
        reply = await self._posted("/embeddings", body, "encoding_format", "base64")
        rows = _ordered(reply, "data", len(texts))
        vectors = [_vector(row.get("embedding")) for row in rows]
        if len({len(vector) for vector in vectors}) != 1:
            raise nonsense()
        return _finite(np.stack(vectors)), _read(reply, texts)

    async def rerank(self, query: str, documents: list[str]) -> tuple[Floats, int]:
        """Relevance of each document; scores that are no shares are taken for logits."""
        reply = await self._at_its_place(
            "/rerank",
            {
                "model": self._files.source,
                "query": query,
                "documents": documents,
                "top_n": len(documents),
            },
        )
        rows = _ordered(reply, "results", len(documents))
        scores = _finite(_numbers([row.get("relevance_score") for row in rows]))
        if scores.min() < 0 or scores.max() > 1:
            scores = (1 / (1 + np.exp(-scores.astype(np.float64)))).astype(np.float32)
        # Some servers count the query once, some with each document.
        most = _num_bytes([query]) * len(documents) + _num_bytes(documents)
        return scores, _read(reply, [query, *documents], most)

    async def classify(self, texts: list[str]) -> tuple[Floats, int]:
        """Probabilities of the labels that the recipe names."""
        body = {"model": self._files.source, "input": texts}
        # Jina's zero-shot classifiers are told the labels, others know them.
        reply = await self._posted("/classify", body, "labels", list(self.labels))
        rows = _ordered(reply, "data", len(texts))
        scores = _finite(np.stack([_probabilities(row, self.labels) for row in rows]))
        return scores, _read(reply, texts)

    async def healthy(self) -> bool:
        """Whether the server is well."""
        return self._upstream.look()

    def close(self) -> None:
        """Close the connections."""
        self._upstream.close()

    async def _events(self, request: Generation, answer: _Answer) -> AsyncGenerator[Any, None]:
        """The server's events, after it has perhaps said which fields it does not know."""
        quirks = self._quirks
        while True:
            path, body = self._asked(request, quirks)
            try:
                stream = self._upstream.stream(path, body, lambda: answer.complete)
                async with contextlib.aclosing(stream):
                    async for events in stream:
                        self._quirks = quirks
                        for event in events:
                            yield event
                return
            except InvalidRequest as refusal:
                quirks = _learned(refusal, quirks)

    def _asked(self, request: Generation, quirks: frozenset[Quirk]) -> tuple[str, dict[str, Any]]:
        """Path and body of a request."""
        body: dict[str, Any] = {
            "model": self._files.source,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "stream": True,
        }
        if "stream_options" not in quirks:
            body["stream_options"] = {"include_usage": True}
        if not request.open_ended:
            unknown = "max_tokens" in quirks
            body["max_completion_tokens" if unknown else "max_tokens"] = request.max_tokens
        if request.stop:
            body["stop"] = list(request.stop)
        if request.seed is not None:
            body["seed"] = request.seed
        if request.turns:
            return "/chat/completions", body | {"messages": [dict(turn) for turn in request.turns]}
        if request.text is None:
            raise InvalidRequest(
                "This model reads text; its token ids are not known here.",
                "Send the prompt as text.",
                "prompt",
            )
        return "/completions", body | {"prompt": request.text}

    async def _posted(self, path: str, body: dict[str, Any], optional: Quirk, value: object) -> Any:
        """One answer in JSON, to a request with a field that not every server knows."""
        quirks = self._quirks
        while True:
            more = {} if optional in quirks else {optional: value}
            try:
                reply = await self._at_its_place(path, body | more)
            except InvalidRequest as refusal:
                quirks = _learned(refusal, quirks)
            else:
                self._quirks = quirks
                return reply

    async def _at_its_place(self, path: str, body: dict[str, Any]) -> Any:
        """Below /v1, or beside it, where vLLM has some; where it was found, it is asked again."""
        at_root = path in self._at_root
        try:
            return await self._upstream.post(path, body, at_root)
        except NoSuchPath:
            reply = await self._upstream.post(path, body, not at_root)
            self._at_root ^= {path}
            return reply


def key_of(variable: str | None) -> str | None:
    """The key in an environment variable.

    Raises:
        RecipeError: It is not there, or nothing that can be sent.
    """
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key or not key.isascii() or not key.isprintable():
        raise RecipeError(
            f"api_key_env: the environment has no key in {variable!r}.",
            "Set it to the server's key; a key has no place in a recipe.",
        )
    return key


class _Answer:
    """One answer as its events come; believes no second end, and no text behind the first.

    Attributes:
        reason: Why it ended, once it has.
        stopped: A stop string was found; no more is needed.
    """

    def __init__(self, request: Generation) -> None:
        self._matcher = StopMatcher(request.stop)
        self._room_bytes = _MAX_OPEN_ENDED_BYTES
        if not request.open_ended:
            self._room_bytes = min(self._room_bytes, _MAX_TOKEN_BYTES * request.max_tokens)
        self._usage: Usage | None = None
        self.reason: FinishReason | None = None

    @property
    def stopped(self) -> bool:
        return self._matcher.matched

    @property
    def complete(self) -> bool:
        """Whether what is still to come can only be counts."""
        return self.reason is not None

    def feed(self, event: Any) -> str:
        """Take an event; returns new text.

        Raises:
            ServingError: It is no part of an answer, or too long for one.
        """
        if not isinstance(event, dict):
            raise nonsense()
        if error := event.get("error"):
            logger.warning("A server elsewhere broke off its answer: %.300r", error)
            raise ServingError(_BROKE_OFF)
        self._usage = _usage(event.get("usage")) or self._usage
        choice = _first(event.get("choices"))
        if choice is None or self.reason is not None:
            return ""
        text = self._matcher.feed(_text(choice))
        self._room_bytes -= len(text.encode())
        if self._room_bytes < 0:
            raise ServingError("The server behind this model wrote more than it was asked for.")
        reason = choice.get("finish_reason")
        if reason is not None:
            self.reason = _REASONS.get(str(reason), "stop")
            text += "" if self.stopped else self._matcher.flush()
        return text

    def last(self) -> Chunk:
        """The end.

        Raises:
            ServingError: It broke off.
        """
        if self.stopped:
            return Chunk("", (), "stop", self._usage)
        if self.reason is None:
            raise ServingError(_BROKE_OFF)
        return Chunk("", (), self.reason, self._usage)


def _learned(refusal: InvalidRequest, known: frozenset[Quirk]) -> frozenset[Quirk]:
    """What a refusal says about the server, with what was known.

    Raises:
        InvalidRequest: Nothing new: it is the request that is wrong.
    """
    said = f"{refusal.param} {refusal.message}"
    found = {name for name in _OPTIONAL if name in said}
    if "max_completion_tokens" in said:
        found.add("max_tokens")
    if found <= known:
        raise refusal
    return known | found


def _first(choices: Any) -> dict[str, Any] | None:
    """The one answer that was asked for, in an event."""
    if choices is None:
        return None
    if not isinstance(choices, list):
        raise nonsense()
    ours = (one for one in choices if isinstance(one, dict) and one.get("index", 0) == 0)
    return next(ours, None)


def _text(choice: dict[str, Any]) -> str:
    """New text: of a chat's stream, of a chat that came whole, of a plain completion."""
    part = choice.get("delta") or choice.get("message")
    text = part.get("content") if isinstance(part, dict) else choice.get("text")
    if text is None:
        return ""
    if not isinstance(text, str):
        raise nonsense()
    return text


def _usage(counts: Any) -> Usage | None:
    if not isinstance(counts, dict):
        return None
    read, written = counts.get("prompt_tokens"), counts.get("completion_tokens")
    if type(read) is not int or type(written) is not int:
        return None
    return Usage(read, written)


def _read(reply: Any, texts: Sequence[str], most: int | None = None) -> int:
    """Tokens read, as far as the server is believed."""
    counts = reply.get("usage")
    claimed = None
    if isinstance(counts, dict):
        claimed = counts.get("prompt_tokens", counts.get("total_tokens"))
    return believed_read(claimed if type(claimed) is int else None, texts, most)


def _num_bytes(texts: Sequence[str]) -> int:
    return sum(len(text.encode()) for text in texts)


def _ordered(reply: Any, key: str, num_rows: int) -> list[dict[str, Any]]:
    """The rows of a reply, in the order of what was sent.

    Raises:
        ServingError: They are not one for each.
    """
    rows = reply.get(key) if isinstance(reply, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise nonsense()
    placed: dict[int, dict[str, Any]] = {}
    for place, row in enumerate(rows):
        index = row.get("index", place)
        if type(index) is not int:
            raise nonsense()
        placed[index] = row
    if len(rows) != num_rows or placed.keys() != set(range(num_rows)):
        raise nonsense()
    return [placed[place] for place in range(num_rows)]


def _vector(embedding: Any) -> Floats:
    if not isinstance(embedding, str):
        return _numbers(embedding)
    try:
        return np.frombuffer(base64.b64decode(embedding, validate=True), "<f4").astype(np.float32)
    except (binascii.Error, ValueError):
        raise nonsense() from None


def _numbers(values: Any) -> Floats:
    try:
        numbers = np.asarray(values, dtype=np.float32)
    except (TypeError, ValueError, OverflowError):
        raise nonsense() from None
    if numbers.ndim != 1 or not len(numbers):
        raise nonsense()
    return numbers


def _finite(numbers: Floats) -> Floats:
    if not numbers.size or not np.isfinite(numbers).all():
        raise nonsense()
    return numbers


def _probabilities(row: dict[str, Any], labels: tuple[str, ...]) -> Floats:
    """Of each label: by name where the server names them, by place otherwise."""
    pairs = row.get("predictions")
    if isinstance(pairs, list) and all(isinstance(pair, dict) for pair in pairs):
        named = {str(pair.get("label")): pair.get("score") for pair in pairs}
        scores = _numbers([named.get(label) for label in labels])
    else:
        scores = _numbers(row.get("probs"))
    if len(scores) != len(labels):
        raise nonsense()
    return scores
