"""The HTTP endpoints: read a request, let a route compute it, write the answer."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from penstock.errors import ContextExceeded, InvalidRequest, NotReady, UnknownModel
from penstock.serving.backends.base import Chunk, Generation
from penstock.serving.exchange import Exchange
from penstock.serving.gateway import Gateway
from penstock.serving.model_text import ModelText
from penstock.serving.replies import (
    END_OF_STREAM,
    AnswerKind,
    AnswerShape,
    embeddings_reply,
    short_embeddings_reply,
)
from penstock.serving.requests import (
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    Sampling,
    ShortEmbed,
    parse,
    parse_short,
)
from penstock.serving.routes import Route

# OpenAI's default for plain completions; a chat may use the whole context.
_COMPLETION_TOKENS = 16
# Longer texts are tokenised in a thread: at about 1 MB a second, a long one
# would hold up every other request.
_MAX_INLINE_CHARS = 4_000


async def chat_completions(request: Request) -> Response:
    """``POST /v1/chat/completions``."""
    gateway, exchange = _context(request)
    asked = parse(exchange.body, ChatRequest)
    _check_model(gateway, exchange, asked.model)
    messages = [message.as_template_input() for message in asked.messages]
    size = sum(len(message["content"]) for message in messages)

    def encode(text: ModelText) -> tuple[int, ...]:
        if text.prompt is None:
            return text.encode_chat(messages)
        return text.encode_chat(gateway.features.filled(text.prompt, messages, asked.metadata))

    return await _answer(
        gateway,
        exchange,
        asked,
        kind="chat",
        encode=encode,
        size_chars=size,
        limit=_chat_limit(asked),
    )


async def completions(request: Request) -> Response:
    """``POST /v1/completions``."""
    gateway, exchange = _context(request)
    asked = parse(exchange.body, CompletionRequest)
    _check_model(gateway, exchange, asked.model)
    prompt = asked.text_or_ids
    return await _answer(
        gateway,
        exchange,
        asked,
        kind="text",
        encode=lambda text: (
            text.encode(prompt) if isinstance(prompt, str) else text.checked(prompt)
        ),
        size_chars=len(prompt),
        limit=asked.max_tokens or _COMPLETION_TOKENS,
    )


async def short_form(request: Request) -> Response:
    """``POST /``: the two things most people want, in one line of JSON."""
    gateway, exchange = _context(request)
    asked = parse_short(exchange.body)
    if isinstance(asked, ShortEmbed):
        return await _embed(gateway, exchange, asked.texts, short_embeddings_reply)
    if asked.stream:
        raise InvalidRequest(
            "The short form does not stream.", "Use /v1/completions.", param="stream"
        )
    prompt = asked.prompt
    exchange.model = gateway.config.model
    return await _answer(
        gateway,
        exchange,
        asked,
        kind="short",
        encode=lambda text: text.encode(prompt),
        size_chars=len(prompt),
        limit=asked.max_tokens or _COMPLETION_TOKENS,
    )


async def embeddings(request: Request) -> Response:
    """``POST /v1/embeddings``."""
    gateway, exchange = _context(request)
    asked = parse(exchange.body, EmbeddingRequest)
    embedding = gateway.config.embedding
    if asked.model == gateway.config.model:
        raise InvalidRequest(f"The model {asked.model!r} does not embed.", param="model")
    if embedding is None or asked.model != embedding.model:
        raise _unknown(gateway, asked.model)
    texts = [asked.input] if isinstance(asked.input, str) else asked.input
    as_base64 = asked.encoding_format == "base64"
    return await _embed(
        gateway,
        exchange,
        texts,
        lambda served, vectors, tokens: embeddings_reply(served, vectors, tokens, as_base64),
    )


def _context(request: Request) -> tuple[Gateway, Exchange]:
    return request.state.gateway, request.state.exchange


def _check_model(gateway: Gateway, exchange: Exchange, model: str) -> None:
    embedding = gateway.config.embedding
    if embedding is not None and model == embedding.model and model != gateway.config.model:
        raise InvalidRequest(
            f"The model {model!r} does not generate text.", "Use /v1/embeddings.", "model"
        )
    if model != gateway.config.model:
        raise _unknown(gateway, model)
    exchange.model = model


def _unknown(gateway: Gateway, model: str) -> UnknownModel:
    names = ", ".join(repr(name) for name in gateway.model_names)
    return UnknownModel(f"There is no model {model[:200]!r}.", f"This gateway serves {names}.")


def _chat_limit(asked: ChatRequest) -> int | None:
    both = {asked.max_tokens, asked.max_completion_tokens} - {None}
    if len(both) > 1:
        raise InvalidRequest(
            "'max_tokens' and 'max_completion_tokens' differ.",
            "Send only 'max_completion_tokens'.",
            param="max_completion_tokens",
        )
    return both.pop() if both else None


async def _answer(
    gateway: Gateway,
    exchange: Exchange,
    asked: Sampling,
    *,
    kind: AnswerKind,
    encode: Callable[[ModelText], tuple[int, ...]],
    size_chars: int,
    limit: int | None,
) -> Response:
    """Compute an answer on the current route, held from here to the answer's last byte."""
    async with contextlib.AsyncExitStack() as held:
        route = held.enter_context(gateway.table.route().lease())
        served = route.served
        exchange.answers_as(served)
        held.enter_context(gateway.metrics.active.labels(served.model).track_inprogress())
        prompt_ids = await _off_loop_if_slow(size_chars, encode, route.text)
        generation = _generation(asked, prompt_ids, limit, route.text.context_length)
        await held.enter_async_context(gateway.generate_admission.slot())
        gateway.metrics.prompt_tokens.labels(served.model).inc(len(prompt_ids))
        shape = AnswerShape(kind, served, len(prompt_ids))
        chunks = _counted(gateway, exchange, route, generation)
        await held.enter_async_context(contextlib.aclosing(chunks))
        if not asked.stream:
            return await _whole(shape, chunks)
        # The first token comes before the status: what breaks until then is still an HTTP error.
        first = await anext(chunks)
        return EventStream(shape, first, chunks, asked.with_usage, held.pop_all())


async def _off_loop_if_slow(
    size_chars: int, encode: Callable[[ModelText], tuple[int, ...]], text: ModelText
) -> tuple[int, ...]:
    # A lookup of features waits for a server.
    if size_chars <= _MAX_INLINE_CHARS and text.prompt is None:
        return encode(text)
    return await asyncio.to_thread(encode, text)


def _generation(
    asked: Sampling, prompt_ids: Sequence[int], limit: int | None, context_length: int
) -> Generation:
    room = context_length - len(prompt_ids)
    if room < 1:
        raise ContextExceeded(
            f"The prompt has {len(prompt_ids)} tokens; this model's context is "
            f"{context_length} tokens, the answer's included.",
            "Shorten the prompt.",
        )
    if limit is not None and limit > room:
        raise ContextExceeded(
            f"This model's context is {context_length} tokens; the prompt has "
            f"{len(prompt_ids)} and {limit} were asked for the answer.",
            f"Ask for at most {room}.",
            "max_tokens",
        )
    return Generation(
        prompt_ids=tuple(prompt_ids),
        max_tokens=limit or room,
        temperature=1.0 if asked.temperature is None else asked.temperature,
        top_p=1.0 if asked.top_p is None else asked.top_p,
        stop=asked.stops,
        seed=asked.seed,
    )


async def _counted(
    gateway: Gateway, exchange: Exchange, route: Route, generation: Generation
) -> AsyncGenerator[Chunk, None]:
    """The backend's chunks, counted as they pass."""
    model = route.served.model
    generated = gateway.metrics.tokens_generated.labels(model)
    is_first = True
    async with contextlib.aclosing(route.backend.generate(generation)) as chunks:
        async for chunk in chunks:
            if is_first:
                is_first = False
                elapsed_s = time.monotonic() - exchange.started_s
                gateway.metrics.first_token.labels(model).observe(elapsed_s)
            generated.inc(len(chunk.token_ids))
            yield chunk


async def _whole(shape: AnswerShape, chunks: AsyncGenerator[Chunk, None]) -> Response:
    pieces: list[str] = []
    num_tokens = 0
    finish_reason = "stop"
    async for chunk in chunks:
        pieces.append(chunk.text)
        num_tokens += len(chunk.token_ids)
        finish_reason = chunk.finish_reason or finish_reason
    return json_response(shape.whole("".join(pieces), num_tokens, finish_reason))


async def _embed(
    gateway: Gateway, exchange: Exchange, texts: list[str], reply: Callable[..., bytes]
) -> Response:
    if gateway.config.embedding is None:
        raise InvalidRequest(
            "This gateway has no embedding model.", "Set serve.embedding in its configuration."
        )
    exchange.model = gateway.config.embedding.model
    if gateway.embedding is None:
        raise NotReady("The embedding model is being loaded.", "Wait until /readyz answers 200.")
    with gateway.embedding.lease() as route, _active(gateway, route):
        exchange.answers_as(route.served)
        async with gateway.embed_admission.slot():
            vectors, num_tokens = await route.backend.embed(texts)
    gateway.metrics.prompt_tokens.labels(route.served.model).inc(num_tokens)
    return json_response(reply(route.served, vectors, num_tokens))


def _active(gateway: Gateway, route: Route) -> Any:
    return gateway.metrics.active.labels(route.served.model).track_inprogress()


def json_response(content: bytes, status: int = 200) -> Response:
    """An answer in JSON."""
    return Response(content, status, media_type="application/json")


class EventStream(Response):
    """An answer as server-sent events; holds the route until the last byte is sent.

    Args:
        shape: Writes the events.
        first: The chunk that was waited for before the status was sent.
        chunks: The rest.
        with_usage: End with the token counts.
        held: What to release when the stream ends, however it ends.
    """

    def __init__(
        self,
        shape: AnswerShape,
        first: Chunk,
        chunks: AsyncGenerator[Chunk, None],
        with_usage: bool,
        held: contextlib.AsyncExitStack,
    ) -> None:
        super().__init__()
        self._shape = shape
        self._first = first
        self._chunks = chunks
        self._with_usage = with_usage
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        async with self._held:
            exchange: Exchange = scope["state"]["exchange"]
            exchange.streaming = True
            await exchange.start(
                200,
                {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"},
            )
            async for event in self._events():
                await exchange.send(
                    {"type": "http.response.body", "body": event, "more_body": True}
                )
            await exchange.send({"type": "http.response.body", "body": b""})

    async def _events(self) -> AsyncGenerator[bytes, None]:
        shape = self._shape
        num_tokens = len(self._first.token_ids)
        yield shape.first_piece(self._with_usage) + self._piece(self._first)
        async for chunk in self._chunks:
            num_tokens += len(chunk.token_ids)
            if event := self._piece(chunk):
                yield event
        usage = shape.usage_piece(num_tokens) if self._with_usage else b""
        yield usage + END_OF_STREAM

    def _piece(self, chunk: Chunk) -> bytes:
        """The event of a chunk; a half character gives a chunk without text, and no event."""
        if not chunk.text and chunk.finish_reason is None:
            return b""
        return self._shape.piece(chunk.text, chunk.finish_reason, self._with_usage)
