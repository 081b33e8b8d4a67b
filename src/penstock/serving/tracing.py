"""What the gateway knows about a request, told to its trace."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping

from penstock.monitoring.span_attributes import Operation
from penstock.monitoring.traces import Span, Trace
from penstock.serve_section import ModelTask
from penstock.serving.facts import Facts
from penstock.serving.models import ServedModel
from penstock.serving.replies import AnswerKind

OPERATIONS: Mapping[ModelTask | AnswerKind, Operation] = {
    "chat": "chat",
    "text": "text_completion",
    "short": "text_completion",
    "embed": "embeddings",
    "rerank": "rerank",
    "classify": "classify",
}


def end(trace: Trace, facts: Facts, method: str = "POST") -> None:
    """Tell a trace all that is known when its request has ended, and end it.

    Args:
        trace: Of this request; its steps were told about when they happened.
        facts: What is known.
        method: The request's HTTP method.
    """
    if not trace.id:
        return
    given: dict[str, object | None] = {
        "method": method,
        "endpoint": facts.endpoint,
        "request_id": facts.request_id,
        "response_id": facts.response_id,
        "asked": facts.asked,
        "model": facts.model,
        "arm": facts.arm,
        "rollout": facts.rollout or None,
        "key_id": facts.key_id,
        "tenant": facts.tenant,
        "session": facts.conversation,
        "stream": facts.stream,
        "max_tokens": facts.max_tokens,
        "temperature": facts.temperature,
        "prompt_tokens": facts.prompt_tokens,
        "completion_tokens": facts.completion_tokens,
        "finish_reason": facts.finish_reason,
        "ttft_s": _ttft_s(facts),
        **_lineage(facts),
    }
    # Each value fits its own parameter; a mapping has one type for all.
    trace.note(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    if facts.prompt is not None:
        trace.prompt([(turn["role"], turn["content"]) for turn in facts.prompt])
    if facts.answer is not None:
        trace.answer(facts.answer)
    if trace.end(facts.status, facts.error):
        facts.trace_id = trace.id


def _lineage(facts: Facts) -> dict[str, object]:
    served = facts.served
    if served is None:
        return {}
    return {
        "version": served.version,
        "digest": served.digest,
        "run_id": served.run_id,
        "data_version": served.data_version,
        "epoch": served.epoch,
    }


def _ttft_s(facts: Facts) -> float | None:
    """From when the backend was asked, as the convention has it, and not from the first byte."""
    if facts.first_token_s is None or facts.computing_s is None:
        return None
    return facts.first_token_s - facts.computing_s


@contextlib.asynccontextmanager
async def slot(trace: Trace, model: ServedModel) -> AsyncIterator[None]:
    """Wait for a slot of the model, as a step of the trace, and hold it.

    Raises:
        Overloaded: The queue is full.
    """
    async with contextlib.AsyncExitStack() as held:
        with trace.span("queue", num_waiting=model.admission.num_waiting):
            await held.enter_async_context(model.admission.slot())
        yield


def call(trace: Trace, facts: Facts, model: ServedModel, kind: ModelTask | AnswerKind) -> Span:
    """The step in which a model is asked; use it in a ``with`` block."""
    return trace.span(
        "backend",
        operation=OPERATIONS[kind],
        provider=model.config.backend_name,
        model=model.name,
        attempt=facts.num_tries,
    )
