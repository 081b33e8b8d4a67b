"""Generating an answer: from a prompt to tokens, whole or as a stream."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, replace

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from penstock.errors import ContextExceeded, ServingError
from penstock.serving import tracing
from penstock.serving.backends.base import Chunk, Generation
from penstock.serving.budgets import Reservation, at_most_tokens
from penstock.serving.exchange import Exchange
from penstock.serving.facts import Facts
from penstock.serving.features import OnlineFeatures
from penstock.serving.gateway import Gateway
from penstock.serving.model_text import ModelText
from penstock.serving.replies import END_OF_STREAM, AnswerKind, AnswerShape
from penstock.serving.requests import Sampling
from penstock.serving.routes import Route
from penstock.serving.token_counts import TokenCounts
from penstock.serving.tries import Try, judged, within

# Longer texts are tokenised in a thread: at about 1 MB a second, a long one
# would hold up every other request.
_MAX_INLINE_CHARS = 4_000
# What is set aside for an answer of a model whose context's length is not known here.
_UNKNOWN_ROOM_TOKENS = 4_096


@dataclass(frozen=True)
class Prompt:
    """What is to be answered.

    Attributes:
        kind: Chat, plain text or the short form.
        turns: The conversation, oldest first; empty for plain text.
        text: Plain text, or its token ids.
        metadata: The request's own; names the entity whose features are asked for.
    """

    kind: AnswerKind
    turns: tuple[dict[str, str], ...] = ()
    text: str | tuple[int, ...] = ""
    metadata: tuple[tuple[str, str], ...] = ()

    @property
    def num_chars(self) -> int:
        """How long it is; token ids count as one."""
        return sum(len(turn["content"]) for turn in self.turns) + len(self.text)

    @property
    def texts(self) -> list[str]:
        """All that a model reads; token ids as something of as many bytes."""
        own = self.text if isinstance(self.text, str) else "x" * len(self.text)
        return [*(turn["content"] for turn in self.turns), own]

    @property
    def last_words(self) -> str:
        """The last thing the user said."""
        said = (turn["content"] for turn in reversed(self.turns) if turn["role"] == "user")
        return next(said, self.text if isinstance(self.text, str) else "")

    @property
    def shown(self) -> tuple[Mapping[str, str], ...]:
        """As turns; token ids are no text, and not shown."""
        if self.turns or not isinstance(self.text, str):
            return self.turns
        return ({"role": "user", "content": self.text},)

    async def encoded(self, text: ModelText, features: OnlineFeatures) -> tuple[int, ...]:
        """Token ids for one model.

        Raises:
            InvalidRequest: The model cannot read it.
        """
        # A lookup of features waits for a server.
        if self.num_chars <= _MAX_INLINE_CHARS and text.prompt is None:
            return self._encode(text, features)
        return await asyncio.to_thread(self._encode, text, features)

    def _encode(self, text: ModelText, features: OnlineFeatures) -> tuple[int, ...]:
        if not self.turns:
            return text.encode(self.text) if isinstance(self.text, str) else text.checked(self.text)
        if text.prompt is None:
            return text.encode_chat(self.turns)
        turns = [dict(turn) for turn in self.turns]
        return text.encode_chat(features.filled(text.prompt, turns, dict(self.metadata)))


@dataclass(frozen=True)
class Question:
    """A prompt and how it is to be answered.

    Attributes:
        prompt: What.
        asked: Sampling and streaming.
        limit: Tokens of the answer; None is as many as there is room for.
    """

    prompt: Prompt
    asked: Sampling
    limit: int | None

    def whole(self) -> Question:
        """The same, to be answered in one piece."""
        return replace(self, asked=self.asked.model_copy(update={"stream": False}))

    def generation(
        self, prompt_ids: Sequence[int], context_length: int | None, open_ended: bool
    ) -> Generation:
        """What a backend is asked.

        Args:
            prompt_ids: The prompt, for a backend that reads tokens.
            context_length: Of the model, if that is known.
            open_ended: An answer for which nobody set a limit may be longer than what is
                set aside.

        Raises:
            ContextExceeded: Prompt and answer do not fit the model.
        """
        asked, prompt = self.asked, self.prompt
        room = _UNKNOWN_ROOM_TOKENS
        if context_length is not None:
            room = _room(len(prompt_ids), self.limit, context_length)
        return Generation(
            prompt_ids=tuple(prompt_ids),
            max_tokens=self.limit or room,
            temperature=1.0 if asked.temperature is None else asked.temperature,
            top_p=1.0 if asked.top_p is None else asked.top_p,
            stop=asked.stops,
            seed=asked.seed,
            text=prompt.text if isinstance(prompt.text, str) and not prompt.turns else None,
            turns=prompt.turns,
            open_ended=open_ended and self.limit is None,
        )


def _room(num_prompt_tokens: int, limit: int | None, context_length: int) -> int:
    room = context_length - num_prompt_tokens
    if room < 1:
        raise ContextExceeded(
            f"The prompt has {num_prompt_tokens} tokens; this model's context is "
            f"{context_length} tokens, the answer's included.",
            "Shorten the prompt.",
        )
    if limit is not None and limit > room:
        raise ContextExceeded(
            f"This model's context is {context_length} tokens; the prompt has "
            f"{num_prompt_tokens} and {limit} were asked for the answer.",
            f"Ask for at most {room}.",
            "max_tokens",
        )
    return room


async def answer(gateway: Gateway, exchange: Exchange, question: Question, one: Try) -> Response:
    """Ask one model, on the route that it has now, held from here to the answer's last byte.

    Raises:
        ServingError: The request is wrong, or the model failed before anything was sent.
    """
    model, facts = one.model, exchange.facts
    async with contextlib.AsyncExitStack() as held:
        route, arm = model.table.route(facts.conversation, one.again, facts.draws)
        held.enter_context(route.lease())
        exchange.answers_as(model, route, arm)
        held.enter_context(gateway.metrics.active.labels(model.name).track_inprogress())
        text = route.text
        prompt_ids = () if text is None else await question.prompt.encoded(text, gateway.features)
        length = None if text is None else text.context_length
        # What a key may use is reserved before, so its answers cannot be longer than that.
        generation = question.generation(prompt_ids, length, open_ended=exchange.key is None)
        facts.max_tokens, facts.temperature = generation.max_tokens, generation.temperature
        counts = TokenCounts(generation, exact=text is not None)
        facts.prompt_tokens = counts.read
        most = len(prompt_ids) if text is not None else at_most_tokens(question.prompt.texts)
        reservation = await held.enter_async_context(
            gateway.access.reserved(
                exchange.key, model.name, most, generation.max_tokens, route.served
            )
        )
        facts.queued_s = time.monotonic()
        await held.enter_async_context(tracing.slot(exchange.trace, model))
        facts.computing_s = time.monotonic()
        shape = AnswerShape(question.prompt.kind, route.served, facts)
        held.enter_context(tracing.call(exchange.trace, facts, model, question.prompt.kind))
        chunks = _counted(gateway, facts, route, generation, counts, reservation)
        if gateway.keeps_answers(model.name) or exchange.trace.wants_content:
            chunks = _kept(facts, chunks)
        await held.enter_async_context(contextlib.aclosing(chunks))
        if not question.asked.stream:
            async with within(model.config.timeout_s):
                return await _whole(shape, chunks)
        # The first token comes before the status: what breaks until then is still an HTTP error.
        async with within(model.config.timeout_s):
            first = await anext(chunks)
        return EventStream(shape, first, chunks, question.asked.with_usage, held.pop_all())


async def _counted(
    gateway: Gateway,
    facts: Facts,
    route: Route,
    generation: Generation,
    counts: TokenCounts,
    reservation: Reservation,
) -> AsyncGenerator[Chunk, None]:
    """The backend's chunks, counted as they pass, up to the last."""
    metrics, model = gateway.metrics, facts.model
    generated = metrics.tokens_generated.labels(model)
    num_told = 0
    reservation.used(facts.prompt_tokens, 0)
    try:
        async with judged(route), contextlib.aclosing(route.backend.generate(generation)) as chunks:
            async for chunk in chunks:
                if facts.first_token_s is None:
                    facts.first_token_s = time.monotonic()
                    first_s = facts.first_token_s - facts.started_s
                    metrics.first_token.labels(model).observe(first_s, facts.exemplar)
                counts.add(chunk)
                facts.prompt_tokens, facts.completion_tokens = counts.read, counts.written
                reservation.used(counts.read, counts.written)
                if counts.exact:
                    generated.inc(counts.written - num_told)
                    num_told = counts.written
                facts.finish_reason = chunk.finish_reason
                yield chunk
                if chunk.finish_reason is not None:
                    break
            else:
                raise ServingError("The model ended its answer without saying why.")
    finally:
        # What was estimated may become less at the end, and a counter only grows.
        generated.inc(counts.written - num_told)
    metrics.prompt_tokens.labels(model).inc(facts.prompt_tokens)


async def _kept(facts: Facts, chunks: AsyncGenerator[Chunk, None]) -> AsyncGenerator[Chunk, None]:
    """The chunks; what they said, up to where they broke off, is told as the answer."""
    pieces: list[str] = []
    try:
        async with contextlib.aclosing(chunks):
            async for chunk in chunks:
                pieces.append(chunk.text)
                yield chunk
    finally:
        facts.answer = "".join(pieces)


async def _whole(shape: AnswerShape, chunks: AsyncGenerator[Chunk, None]) -> Response:
    pieces: list[str] = []
    finish_reason = "stop"
    async for chunk in chunks:
        pieces.append(chunk.text)
        finish_reason = chunk.finish_reason or finish_reason
    return json_response(shape.whole("".join(pieces), finish_reason))


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
            exchange.facts.stream = True
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
        yield shape.first_piece(self._with_usage) + self._piece(self._first)
        async for chunk in self._chunks:
            if event := self._piece(chunk):
                yield event
        usage = shape.usage_piece() if self._with_usage else b""
        yield usage + END_OF_STREAM

    def _piece(self, chunk: Chunk) -> bytes:
        """The event of a chunk; a half character gives a chunk without text, and no event."""
        if not chunk.text and chunk.finish_reason is None:
            return b""
        return self._shape.piece(chunk.text, chunk.finish_reason, self._with_usage)
