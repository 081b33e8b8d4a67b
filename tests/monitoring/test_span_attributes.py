import json
import re

import pytest

from penstock.monitoring.span_attributes import TABLE, SpanFacts, StepView, attributes

FACTS = {
    "model": "m",
    "prompt_tokens": 4,
    "temperature": 0.0,
    "finish_reason": "length",
    "cost_usd": 0.0,
    "provider": "vllm",
}


def view(operation="chat", step="backend", **more):
    return StepView(step=step, facts=FACTS | {"operation": operation}, shared={}, **more)


def test_every_fact_that_can_be_told_has_a_name():
    assert {row.fact for row in TABLE} == set(SpanFacts.__annotations__)


def test_no_name_stands_for_two_facts():
    for vocabulary in ("gen_ai", "openinference", "langfuse", "langsmith"):
        names = [name for row in TABLE for name in row.names.get(vocabulary, ())]
        assert len(names) == len(set(names))


def test_own_names_are_in_our_own_namespace_or_a_conventions():
    conventions = r"(penstock|gen_ai|http|error|user|llm|session|langfuse|langsmith)\."
    for row in TABLE:
        for names in row.names.values():
            assert all(re.match(conventions, name) for name in names)


def test_zero_is_a_value():
    shown = attributes(view(), ["gen_ai", "openinference"])
    assert shown["gen_ai.request.temperature"] == 0.0
    assert shown["llm.cost.total"] == 0.0
    assert shown["llm.token_count.total"] == 4


@pytest.mark.parametrize(
    ("operation", "kind", "model"),
    [
        ("chat", "LLM", "llm.model_name"),
        ("text_completion", "LLM", "llm.model_name"),
        ("embeddings", "EMBEDDING", "embedding.model_name"),
        ("rerank", "RERANKER", "reranker.model_name"),
    ],
)
def test_openinference_tells_kinds_of_models_apart(operation, kind, model):
    shown = attributes(view(operation), ["openinference"])
    assert shown["openinference.span.kind"] == kind
    assert shown[model] == "m"


@pytest.mark.parametrize(
    ("operation", "langfuse", "langsmith"),
    [
        ("chat", "generation", "llm"),
        ("embeddings", "embedding", "embedding"),
        ("rerank", "span", "retriever"),
        ("classify", "span", "chain"),
    ],
)
def test_langfuse_and_langsmith_tell_them_apart_in_their_words(operation, langfuse, langsmith):
    shown = attributes(view(operation), ["langfuse", "langsmith"])
    assert shown["langfuse.observation.type"] == langfuse
    assert shown["langsmith.span.kind"] == langsmith


def test_one_text_is_plain_and_a_conversation_is_json():
    one = attributes(view("embeddings", prompt=[("user", "text")]), ["openinference"])
    assert (one["input.value"], one["input.mime_type"]) == ("text", "text/plain")
    turns = [("user", "Ü"), ("assistant", "b")]
    many = attributes(view(prompt=turns), ["openinference"])
    assert many["input.mime_type"] == "application/json"
    assert json.loads(many["input.value"])[0] == {"role": "user", "content": "Ü"}
    assert "Ü" in many["input.value"]


def test_every_value_is_of_a_type_that_a_span_can_hold():
    shown = attributes(
        view(prompt=[("user", "a")], answer="b"),
        ["gen_ai", "gen_ai_messages", "openinference", "langfuse", "langsmith"],
    )
    for value in shown.values():
        parts = value if isinstance(value, list) else [value]
        assert all(isinstance(part, str | bool | int | float) for part in parts)
