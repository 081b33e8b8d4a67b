"""What the gateway knows about a request, in the words of each tool: one versioned table.

OpenTelemetry's ``gen_ai.*`` names are all "Development" and have moved between
repositories, and every tool reads further names of its own. So the gateway tells
facts in its own words (``SpanFacts``), and this module alone says what they are called
elsewhere. Raise ``TABLE_VERSION`` with every change of a name; spans carry it as the
version of their instrumentation scope.

Sources, as of the pinned versions:

- GenAI and HTTP: semantic conventions 1.41.1, the last release that defines ``gen_ai.*``,
  https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/
- OpenInference 0.1.42, which Phoenix reads,
  https://github.com/Arize-ai/openinference/blob/main/spec/semantic_conventions.md
- Langfuse, https://langfuse.com/integrations/native/opentelemetry#property-mapping
- LangSmith, https://docs.langchain.com/langsmith/trace-with-opentelemetry
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from typing import Any, Literal, TypedDict

TABLE_VERSION = 1
SEMCONV_VERSION = "1.41.1"
OPENINFERENCE_VERSION = "0.1.42"
SCHEMA_URL = f"https://opentelemetry.io/schemas/{SEMCONV_VERSION}"

Vocabulary = Literal["gen_ai", "gen_ai_messages", "openinference", "langfuse", "langsmith"]
Step = Literal["gateway", "route", "queue", "backend"]
Operation = Literal["chat", "text_completion", "embeddings", "rerank", "classify"]
On = Literal["root", "call", "step", "all"]
Value = str | bool | int | float | Sequence[str]


class SpanFacts(TypedDict, total=False):
    """What may be said about a request or a step of it; units are in the names."""

    operation: Operation
    provider: str  # the backend's registered name
    asked: str  # the name a client asked for: of a route or a model
    model: str
    version: int
    digest: str
    run_id: str
    data_version: str
    epoch: int
    why: str  # what chose the model
    intent: str
    confidence: float
    arm: str  # champion, challenger, shadow
    rollout: str
    key_id: str
    tenant: str
    session: str
    user: str
    request_id: str
    response_id: str
    method: str
    endpoint: str
    status: int
    stream: bool
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str
    temperature: float
    top_p: float
    max_tokens: int
    seed: int
    ttft_s: float
    queue_s: float
    num_waiting: int
    attempt: int
    cost_usd: float
    error: str  # what kind of failure; never a message, which may quote the request
    cancelled: bool


@dataclass(frozen=True)
class StepView:
    """One step as it is described in a tool's words.

    Attributes:
        step: Which one.
        facts: About this step.
        shared: About the request; what tools filter by must be on every span.
        started_ns: When it began, since the epoch.
        prompt: Turns as (role, text), where content is sent and this step has some.
        answer: Likewise.
    """

    step: Step
    facts: Mapping[str, Any]
    shared: Mapping[str, Any]
    started_ns: int = 0
    prompt: Sequence[tuple[str, str]] = ()
    answer: str | None = None

    @property
    def is_call(self) -> bool:
        """Whether a model is asked in this step."""
        return self.step == "backend"


# -- the table -------------------------------------------------------------------


def _same(value: Any) -> Any:
    return value


def _listed(value: Any) -> list[Any]:
    return [value]


@dataclass(frozen=True)
class Row:
    """A fact and its names.

    Attributes:
        fact: As in ``SpanFacts``.
        on: ``root``: the request's own span; ``call``: spans on which a model is asked, so that
            no tool counts tokens twice; ``step``: the span it was told about; ``all``: every
            span of the request, at a price: attributes are most of what a trace costs.
        names: Vocabulary -> attribute names.
        convert: From our value to the attribute's.
    """

    fact: str
    on: On
    names: Mapping[Vocabulary, tuple[str, ...]]
    convert: Callable[[Any], Any] = field(default=_same)


def _row(
    fact: str,
    on: On,
    convert: Callable[[Any], Any] = _same,
    **names: str | tuple[str, ...],
) -> Row:
    tuples = {key: (name,) if isinstance(name, str) else name for key, name in names.items()}
    # Callers name tools by keyword, which a mapping's literal keys cannot say.
    return Row(fact, on, tuples, convert)  # type: ignore[arg-type]


TABLE: tuple[Row, ...] = (
    _row("operation", "call", gen_ai="gen_ai.operation.name"),
    _row(
        "provider",
        "call",
        gen_ai="gen_ai.provider.name",
        openinference="llm.provider",
        langsmith="gen_ai.system",
    ),
    _row("asked", "call", gen_ai="gen_ai.request.model"),
    _row(
        "model",
        "call",
        gen_ai="gen_ai.response.model",
        langfuse="langfuse.observation.model.name",
    ),
    _row("version", "root", gen_ai="penstock.model.version"),
    _row("version", "all", str, langfuse="langfuse.version"),
    _row("digest", "root", gen_ai="penstock.model.digest"),
    _row("run_id", "root", gen_ai="penstock.run_id"),
    _row("data_version", "root", gen_ai="penstock.data_version"),
    _row("epoch", "step", gen_ai="penstock.epoch"),
    _row("asked", "root", gen_ai="penstock.asked"),
    _row("why", "step", gen_ai="penstock.why"),
    _row("intent", "root", gen_ai="penstock.intent"),
    _row("confidence", "step", gen_ai="penstock.intent.confidence"),
    _row("arm", "root", gen_ai="penstock.arm"),
    _row("rollout", "root", gen_ai="penstock.rollout"),
    _row("key_id", "root", gen_ai="penstock.key_id"),
    _row("tenant", "root", gen_ai="penstock.tenant"),
    _row(
        "session",
        "all",
        gen_ai="gen_ai.conversation.id",
        openinference="session.id",
        langfuse="langfuse.session.id",
        langsmith="langsmith.metadata.session_id",
    ),
    _row(
        "user",
        "all",
        gen_ai="user.id",
        langfuse="langfuse.user.id",
        langsmith="langsmith.metadata.user_id",
    ),
    _row("request_id", "root", gen_ai="penstock.request_id"),
    _row("response_id", "root", gen_ai="penstock.response_id"),
    _row("response_id", "call", gen_ai="gen_ai.response.id"),
    _row("method", "step", gen_ai="http.request.method"),
    _row("endpoint", "step", gen_ai="http.route"),
    _row("status", "step", gen_ai="http.response.status_code"),
    _row("stream", "call", gen_ai="gen_ai.request.stream"),
    _row(
        "prompt_tokens",
        "call",
        gen_ai="gen_ai.usage.input_tokens",
        openinference="llm.token_count.prompt",
    ),
    _row(
        "completion_tokens",
        "call",
        gen_ai="gen_ai.usage.output_tokens",
        openinference="llm.token_count.completion",
    ),
    _row("finish_reason", "call", _listed, gen_ai="gen_ai.response.finish_reasons"),
    _row("finish_reason", "call", openinference="llm.finish_reason"),
    _row("temperature", "call", gen_ai="gen_ai.request.temperature"),
    _row("top_p", "call", gen_ai="gen_ai.request.top_p"),
    _row("max_tokens", "call", gen_ai="gen_ai.request.max_tokens"),
    _row("seed", "call", gen_ai="gen_ai.request.seed"),
    _row("ttft_s", "call", gen_ai="gen_ai.response.time_to_first_chunk"),
    _row("queue_s", "step", gen_ai="penstock.queue_s"),
    _row("num_waiting", "step", gen_ai="penstock.queue.num_waiting"),
    _row("attempt", "step", gen_ai="penstock.attempt"),
    _row("cost_usd", "call", gen_ai="penstock.cost_usd", openinference="llm.cost.total"),
    _row("error", "step", gen_ai="error.type"),
    _row("cancelled", "step", gen_ai="penstock.cancelled"),
)

# What people filter by. Each tool keeps it under a name of its own, on every span.
METADATA: tuple[str, ...] = (
    "version",
    "digest",
    "run_id",
    "data_version",
    "asked",
    "intent",
    "arm",
    "rollout",
    "key_id",
    "tenant",
    "request_id",
    "response_id",
)
# Told about a request, and true of the call that answered it.
CALL_FACTS = frozenset(row.fact for row in TABLE if row.on == "call")
_PARAMETERS = ("temperature", "top_p", "max_tokens", "seed")
_GENERATES = ("chat", "text_completion")

_OPENINFERENCE_KINDS = {
    "chat": "LLM",
    "text_completion": "LLM",
    "embeddings": "EMBEDDING",
    "rerank": "RERANKER",
}
_OPENINFERENCE_MODEL = {
    "EMBEDDING": "embedding.model_name",
    "RERANKER": "reranker.model_name",
}
_LANGFUSE_TYPES = {
    "chat": "generation",
    "text_completion": "generation",
    "embeddings": "embedding",
}
_LANGSMITH_KINDS = {
    "chat": "llm",
    "text_completion": "llm",
    "embeddings": "embedding",
    "rerank": "retriever",
}


# -- reading it ------------------------------------------------------------------


def attributes(view: StepView, vocabularies: Sequence[Vocabulary]) -> dict[str, Value]:
    """A step's attributes in the words of one or more tools."""
    found: dict[str, Value] = {"penstock.step": view.step}
    for name, value in _by_table(view, vocabularies):
        found[name] = value
    for vocabulary in vocabularies:
        found.update(_COMPOSED[vocabulary](view))
    return found


def _by_table(view: StepView, vocabularies: Sequence[Vocabulary]) -> Iterator[tuple[str, Value]]:
    kind: Literal["root", "call", "step"] = (
        "root" if view.step == "gateway" else "call" if view.is_call else "step"
    )
    for fact, is_shared, name, convert in _lines(kind, tuple(vocabularies)):
        value = (view.shared if is_shared else view.facts).get(fact)
        if value is not None:
            yield name, convert(value)


@cache
def _lines(
    kind: Literal["root", "call", "step"], vocabularies: tuple[Vocabulary, ...]
) -> list[tuple[str, bool, str, Callable[[Any], Any]]]:
    """What one kind of span needs: fact, whether it is the request's, attribute, conversion."""
    return [
        (row.fact, row.on in ("root", "all"), name, row.convert)
        for row in TABLE
        if row.on in (kind, "step", "all")
        for vocabulary in vocabularies
        for name in row.names.get(vocabulary, ())
    ]


def _metadata(view: StepView) -> dict[str, Any]:
    shared = view.shared
    return {name: shared[name] for name in METADATA if shared.get(name) is not None}


def _parameters(view: StepView) -> dict[str, Any]:
    facts = view.facts
    return {name: facts[name] for name in _PARAMETERS if facts.get(name) is not None}


def _num_tokens(view: StepView) -> int | None:
    counts = [view.facts.get(name) for name in ("prompt_tokens", "completion_tokens")]
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _turns(view: StepView) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for role, text in view.prompt]


def _input(view: StepView) -> tuple[str, bool] | None:
    """The prompt as one text, and whether that is JSON."""
    if not view.prompt:
        return None
    if len(view.prompt) == 1:
        return view.prompt[0][1], False
    return json.dumps(_turns(view), ensure_ascii=False), True


def _nothing(view: StepView) -> dict[str, Value]:
    return {}


def _gen_ai_messages(view: StepView) -> dict[str, Value]:
    """Apart from the other names: tools with words of their own get content in those alone."""
    if not view.is_call or view.facts.get("operation") not in _GENERATES:
        return {}
    found: dict[str, Value] = {}
    if view.prompt:
        turns = [{"role": role, "parts": _parts(text)} for role, text in view.prompt]
        found["gen_ai.input.messages"] = json.dumps(turns, ensure_ascii=False)
    if view.answer is not None:
        turn = {"role": "assistant", "parts": _parts(view.answer)}
        if reason := view.facts.get("finish_reason"):
            turn["finish_reason"] = reason
        found["gen_ai.output.messages"] = json.dumps([turn], ensure_ascii=False)
    return found


def _parts(text: str) -> Any:
    return [{"type": "text", "content": text}]


def _openinference(view: StepView) -> dict[str, Value]:
    operation = view.facts.get("operation") if view.is_call else None
    kind = _OPENINFERENCE_KINDS.get(operation or "", "CHAIN")
    found: dict[str, Value] = {"openinference.span.kind": kind}
    if (view.is_call or view.step == "gateway") and (metadata := _metadata(view)):
        found["metadata"] = json.dumps(metadata)
    if (whole := _input(view)) is not None:
        found["input.value"] = whole[0]
        found["input.mime_type"] = "application/json" if whole[1] else "text/plain"
    if view.answer is not None:
        found |= {"output.value": view.answer, "output.mime_type": "text/plain"}
    if kind != "CHAIN":
        found |= _openinference_call(view, kind)
    return found


def _openinference_call(view: StepView, kind: str) -> dict[str, Value]:
    found: dict[str, Value] = {}
    if model := view.facts.get("model"):
        found[_OPENINFERENCE_MODEL.get(kind, "llm.model_name")] = model
    if (total := _num_tokens(view)) is not None:
        found["llm.token_count.total"] = total
    if parameters := _parameters(view):
        found["llm.invocation_parameters"] = json.dumps(parameters)
    if kind == "LLM":
        for i, (role, text) in enumerate(view.prompt):
            found[f"llm.input_messages.{i}.message.role"] = role
            found[f"llm.input_messages.{i}.message.content"] = text
        if view.answer is not None:
            found["llm.output_messages.0.message.role"] = "assistant"
            found["llm.output_messages.0.message.content"] = view.answer
    return found


def _langfuse(view: StepView) -> dict[str, Value]:
    """Trace-level attributes stand on every span: Langfuse filters single observations."""
    operation = view.facts.get("operation") if view.is_call else None
    found: dict[str, Value] = {
        "langfuse.observation.type": _LANGFUSE_TYPES.get(operation or "", "span")
    }
    if endpoint := view.shared.get("endpoint"):
        found["langfuse.trace.name"] = endpoint
    for name, value in _metadata(view).items():
        found[f"langfuse.trace.metadata.{name}"] = str(value)
    if (whole := _input(view)) is not None:
        found["langfuse.observation.input"] = whole[0]
    if view.answer is not None:
        found["langfuse.observation.output"] = view.answer
    if view.is_call:
        found |= _langfuse_call(view)
    return found


def _langfuse_call(view: StepView) -> dict[str, Value]:
    found: dict[str, Value] = {}
    facts = view.facts
    counts = {"input": facts.get("prompt_tokens"), "output": facts.get("completion_tokens")}
    known = {name: count for name, count in counts.items() if count is not None}
    if known:
        usage = known | {"total": sum(known.values())}
        found["langfuse.observation.usage_details"] = json.dumps(usage)
    if (cost := facts.get("cost_usd")) is not None:
        found["langfuse.observation.cost_details"] = json.dumps({"total": cost})
    if parameters := _parameters(view):
        found["langfuse.observation.model.parameters"] = json.dumps(parameters)
    if (ttft_s := facts.get("ttft_s")) is not None:
        first = datetime.fromtimestamp(view.started_ns / 1e9 + ttft_s, UTC)
        found["langfuse.observation.completion_start_time"] = first.isoformat()
    return found


def _langsmith(view: StepView) -> dict[str, Value]:
    """A conversation is a thread by ``metadata.session_id``; ``trace.session_id`` is a project."""
    operation = view.facts.get("operation") if view.is_call else None
    kind = _LANGSMITH_KINDS.get(operation or "", "chain")
    found: dict[str, Value] = {"langsmith.span.kind": kind}
    for name, value in _metadata(view).items():
        found[f"langsmith.metadata.{name}"] = value
    for name in ("ttft_s", "cost_usd"):
        if view.is_call and (value := view.facts.get(name)) is not None:
            found[f"langsmith.metadata.{name}"] = value
    if view.is_call and (total := _num_tokens(view)) is not None:
        found["gen_ai.usage.total_tokens"] = total
    return found | _langsmith_content(view, kind)


def _langsmith_content(view: StepView, kind: str) -> dict[str, Value]:
    found: dict[str, Value] = {}
    if kind == "llm":
        for i, (role, text) in enumerate(view.prompt):
            found |= {f"gen_ai.prompt.{i}.role": role, f"gen_ai.prompt.{i}.content": text}
        if view.answer is not None:
            found |= {
                "gen_ai.completion.0.role": "assistant",
                "gen_ai.completion.0.content": view.answer,
            }
        return found
    if (whole := _input(view)) is not None:
        found["input.value"] = whole[0]
    if view.answer is not None:
        found["output.value"] = view.answer
    return found


_COMPOSED: Mapping[Vocabulary, Callable[[StepView], dict[str, Value]]] = {
    "gen_ai": _nothing,
    "gen_ai_messages": _gen_ai_messages,
    "openinference": _openinference,
    "langfuse": _langfuse,
    "langsmith": _langsmith,
}
