"""The HTTP endpoints: read a request, choose who answers, write the answer."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import Response

from penstock.errors import InvalidRequest
from penstock.serve_section import ModelTask
from penstock.serving import replies, tracing
from penstock.serving.answering import Prompt, Question, answer, json_response
from penstock.serving.backends.base import Floats
from penstock.serving.budgets import at_most_tokens
from penstock.serving.exchange import Exchange
from penstock.serving.gateway import Gateway
from penstock.serving.keys import check_model
from penstock.serving.requests import (
    ChatRequest,
    ClassifyRequest,
    CompletionRequest,
    EmbeddingRequest,
    RerankRequest,
    ShortClassify,
    ShortEmbed,
    ShortGenerate,
    ShortRerank,
    parse,
    parse_short,
)
from penstock.serving.routes import Route
from penstock.serving.routing import Asked
from penstock.serving.shadows import cast_shadow
from penstock.serving.tries import Try, first_answer, judged, within

# OpenAI's default for plain completions; a chat may use the whole context.
_COMPLETION_TOKENS = 16
# Where a task is done, for a request that came elsewhere.
_PLACES: dict[ModelTask, str] = {
    "generate": "/v1/chat/completions",
    "embed": "/v1/embeddings",
    "rerank": "/v1/rerank",
    "classify": "/v1/classify",
}
Result = TypeVar("Result")


async def chat_completions(request: Request) -> Response:
    """``POST /v1/chat/completions``."""
    gateway, exchange = _context(request)
    asked = parse(exchange.body, ChatRequest)
    turns = tuple(message.as_template_input() for message in asked.messages)
    prompt = Prompt("chat", turns, metadata=tuple(asked.metadata.items()))
    return await _generate(
        gateway, exchange, asked.model, Question(prompt, asked, _chat_limit(asked))
    )


async def completions(request: Request) -> Response:
    """``POST /v1/completions``."""
    gateway, exchange = _context(request)
    asked = parse(exchange.body, CompletionRequest)
    text = asked.text_or_ids
    prompt = Prompt(
        "text",
        text=text if isinstance(text, str) else tuple(text),
        metadata=tuple(asked.metadata.items()),
    )
    limit = asked.max_tokens or _COMPLETION_TOKENS
    return await _generate(gateway, exchange, asked.model, Question(prompt, asked, limit))


async def embeddings(request: Request) -> Response:
    """``POST /v1/embeddings``."""
    gateway, exchange = _context(request)
    asked = parse(exchange.body, EmbeddingRequest)
    as_base64 = asked.encoding_format == "base64"
    return await _embed(
        gateway,
        exchange,
        asked.model,
        asked.texts,
        lambda route, vectors: replies.embeddings(route.served, exchange.facts, vectors, as_base64),
    )


async def rerank(request: Request) -> Response:
    """``POST /v1/rerank``, as Jina and Cohere have it."""
    gateway, exchange = _context(request)
    asked = parse(exchange.body, RerankRequest)
    return await _rerank(gateway, exchange, asked.model, asked)


async def classify(request: Request) -> Response:
    """``POST /v1/classify``, as vLLM and Jina have it."""
    gateway, exchange = _context(request)
    asked = parse(exchange.body, ClassifyRequest)
    return await _classify(gateway, exchange, asked.model, asked.texts)


async def short_form(request: Request) -> Response:
    """``POST /``: what most people want, in one line of JSON."""
    gateway, exchange = _context(request)
    asked = parse_short(exchange.body)
    if isinstance(asked, ShortEmbed):
        model = _model_or_default(gateway, exchange, asked.model, "embed")
        return await _embed(
            gateway,
            exchange,
            model,
            asked.texts,
            lambda route, vectors: replies.short_embeddings(route.served, exchange.facts, vectors),
        )
    if isinstance(asked, ShortRerank):
        model = _model_or_default(gateway, exchange, asked.model, "rerank")
        return await _rerank(gateway, exchange, model, asked)
    if isinstance(asked, ShortClassify):
        model = _model_or_default(gateway, exchange, asked.model, "classify")
        return await _classify(gateway, exchange, model, asked.texts)
    return await _short_generate(gateway, exchange, asked)


async def _short_generate(gateway: Gateway, exchange: Exchange, asked: ShortGenerate) -> Response:
    if asked.stream:
        raise InvalidRequest(
            "The short form does not stream.", "Use /v1/completions.", param="stream"
        )
    model = _model_or_default(gateway, exchange, asked.model, "generate")
    limit = asked.max_tokens or _COMPLETION_TOKENS
    prompt = Prompt("short", text=asked.prompt, metadata=tuple(asked.metadata.items()))
    return await _generate(gateway, exchange, model, Question(prompt, asked, limit))


def _context(request: Request) -> tuple[Gateway, Exchange]:
    return request.state.gateway, request.state.exchange


def _model_or_default(
    gateway: Gateway, exchange: Exchange, asked: str | None, task: ModelTask
) -> str:
    name = asked or gateway.default(task, exchange.key)
    if name is None:
        raise InvalidRequest(
            f"This gateway has no model that can {task}.", "Add one under serve.models.", "endpoint"
        )
    return name


def _chat_limit(asked: ChatRequest) -> int | None:
    both = {asked.max_tokens, asked.max_completion_tokens} - {None}
    if len(both) > 1:
        raise InvalidRequest(
            "'max_tokens' and 'max_completion_tokens' differ.",
            "Send only 'max_completion_tokens'.",
            param="max_completion_tokens",
        )
    return both.pop() if both else None


async def _generate(
    gateway: Gateway, exchange: Exchange, name: str, question: Question
) -> Response:
    prompt, facts = question.prompt, exchange.facts
    metadata = dict(prompt.metadata)
    facts.conversation = exchange.conversation(metadata)
    if gateway.wants_content or exchange.trace.wants_content:
        facts.prompt = prompt.shown
    asked = Asked(
        name, prompt.last_words, prompt.num_chars, metadata, facts.tenant, facts.conversation
    )

    async def ask(told: Exchange, one: Try) -> Response:
        return await answer(gateway, told, question.whole() if told.is_shadow else question, one)

    return await _asked(gateway, exchange, asked, "generate", ask)


async def _asked(
    gateway: Gateway,
    exchange: Exchange,
    asked: Asked,
    task: ModelTask,
    ask: Callable[[Exchange, Try], Awaitable[Result]],
) -> Result:
    """Choose who answers, and ask them in turn; who is to get a copy is asked beside them.

    Raises:
        InvalidRequest: The model does something else.
        UnknownModel: There is none of that name.
        ServingError: Nobody answered.
    """
    with exchange.trace.span("route") as step:
        check_model(exchange.key, asked.name, gateway.router.names)
        choice = await gateway.router.choose(asked, task)
        step.note(why=choice.why)
    facts = exchange.facts
    facts.asked, facts.why, facts.model = asked.name, choice.why, choice.models[0].name
    other = choice.models[0].config.task
    if other != task:
        raise InvalidRequest(
            f"The model {asked.name!r} does not {task}.", f"Use {_PLACES[other]}.", "model"
        )
    if choice.shadow is not None:
        cast_shadow(gateway, choice.shadow, exchange, ask)
    return await first_answer(choice.models, facts, gateway.metrics, lambda one: ask(exchange, one))


async def _computed(
    gateway: Gateway,
    exchange: Exchange,
    asked: Asked,
    task: ModelTask,
    texts: Sequence[str],
    compute: Callable[[Route], Awaitable[tuple[Result, int]]],
) -> tuple[Route, Result]:
    """What a model computes in one go.

    Args:
        gateway: Its models are asked.
        exchange: Told who answers.
        asked: Who is asked.
        task: For what.
        texts: Everything that is read.
        compute: Returns what was computed, and the tokens read.
    """

    async def ask(told: Exchange, one: Try) -> tuple[Route, Result]:
        model, facts = one.model, told.facts
        route, arm = model.table.route(facts.conversation, one.again, facts.draws)
        with route.lease(), gateway.metrics.active.labels(model.name).track_inprogress():
            told.answers_as(model, route, arm)
            facts.queued_s = time.monotonic()
            most = at_most_tokens(texts)
            async with (
                gateway.access.reserved(told.key, model.name, most, 0, route.served) as reservation,
                tracing.slot(told.trace, model),
                within(model.config.timeout_s),
            ):
                facts.computing_s = time.monotonic()
                with tracing.call(told.trace, facts, model, task):
                    async with judged(route):
                        result, facts.prompt_tokens = await compute(route)
                reservation.used(facts.prompt_tokens, 0)
            gateway.metrics.prompt_tokens.labels(model.name).inc(facts.prompt_tokens)
            return route, result

    return await _asked(gateway, exchange, asked, task, ask)


async def _embed(
    gateway: Gateway,
    exchange: Exchange,
    name: str,
    texts: list[str],
    reply: Callable[[Route, Floats], bytes],
) -> Response:
    _keep(gateway, exchange, [("text", text) for text in texts])
    route, vectors = await _computed(
        gateway,
        exchange,
        _about(exchange, name, texts),
        "embed",
        texts,
        lambda route: route.backend.embed(texts),
    )
    return json_response(reply(route, vectors))


async def _rerank(
    gateway: Gateway, exchange: Exchange, name: str, asked: RerankRequest | ShortRerank
) -> Response:
    documents = asked.texts
    _keep(gateway, exchange, [("query", asked.query), *(("document", one) for one in documents)])
    route, scores = await _computed(
        gateway,
        exchange,
        _about(exchange, name, [asked.query, *documents]),
        "rerank",
        [*documents, *[asked.query] * len(documents)],
        lambda route: route.backend.rerank(asked.query, documents),
    )
    shown = documents if asked.return_documents else None
    return json_response(replies.ranking(route.served, exchange.facts, scores, asked.top_n, shown))


async def _classify(gateway: Gateway, exchange: Exchange, name: str, texts: list[str]) -> Response:
    # One text with its label is what a correction can make a training row of.
    role = "user" if len(texts) == 1 else "text"
    _keep(gateway, exchange, [(role, text) for text in texts])
    route, scores = await _computed(
        gateway,
        exchange,
        _about(exchange, name, texts),
        "classify",
        texts,
        lambda route: route.backend.classify(texts),
    )
    labels = route.backend.labels
    if gateway.wants_content and len(texts) == 1:
        exchange.facts.answer = labels[int(scores[0].argmax())]
        exchange.facts.finish_reason = "stop"
    return json_response(replies.classes(route.served, exchange.facts, scores, labels))


def _keep(gateway: Gateway, exchange: Exchange, asked: Sequence[tuple[str, str]]) -> None:
    """Keep what was asked, by role, if anybody wants to know."""
    if gateway.wants_content:
        exchange.facts.prompt = tuple({"role": role, "content": text} for role, text in asked)


def _about(exchange: Exchange, name: str, texts: list[str]) -> Asked:
    facts = exchange.facts
    facts.conversation = exchange.conversation({})
    num_chars = sum(map(len, texts))
    return Asked(name, texts[-1], num_chars, {}, facts.tenant, facts.conversation)
