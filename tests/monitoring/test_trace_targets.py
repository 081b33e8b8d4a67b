"""What a receiver sees, held to what the tools' documentation asks for.

- Langfuse: https://langfuse.com/integrations/native/opentelemetry
- LangSmith: https://docs.langchain.com/langsmith/trace-with-opentelemetry
- Phoenix: https://arize.com/docs/phoenix/resources/frequently-asked-questions/what-is-my-phoenix-endpoint
  and https://arize.com/docs/phoenix/sdk-api-reference/python/arize-phoenix-otel
- OTLP: https://opentelemetry.io/docs/specs/otel/protocol/exporter/
"""

import base64
import json

import pytest

from penstock.errors import PenstockError
from penstock.monitoring.trace_targets import target
from penstock.monitoring.traces import Tracer
from penstock.traces_section import TracesConfig
from traced_request import ANSWER, KEYS, LINEAGE, PROMPT, RESPONSE_ID, by_step, request

PLAIN = {"accept", "accept-encoding", "connection", "content-length", "content-type", "host"}
PLAIN |= {"user-agent"}


def first(receiver):
    receiver.wait(num_requests=1)
    return receiver.requests[0]


# -- endpoint and headers --------------------------------------------------------


def test_langfuse_gets_basic_authentication_and_its_ingestion_version(start, receiver):
    request(start(to="langfuse"))
    path, headers = first(receiver)
    assert path == "/api/public/otel/v1/traces"
    pair = base64.b64encode(b"pk-lf-public:sk-lf-secret").decode()
    assert headers["authorization"] == f"Basic {pair}"
    assert headers["x-langfuse-ingestion-version"] == "4"
    assert headers["content-type"] == "application/x-protobuf"
    assert headers.keys() - PLAIN == {"authorization", "x-langfuse-ingestion-version"}


@pytest.mark.parametrize("settings", [{"project": "penny"}, {}])
def test_langsmith_gets_its_key_and_the_project(start, receiver, settings):
    request(start(to="langsmith", environ={"LANGSMITH_PROJECT": "by-environment"}, **settings))
    path, headers = first(receiver)
    assert path == "/otel/v1/traces"
    assert headers["x-api-key"] == "lsv2-secret"
    assert headers["langsmith-project"] == settings.get("project", "by-environment")
    assert headers["content-type"] == "application/x-protobuf"
    assert headers.keys() - PLAIN == {"x-api-key", "langsmith-project"}


def test_phoenix_gets_a_bearer_token_and_the_project_as_a_resource(start, receiver):
    request(start(to="phoenix", project="penny", environ={"PHOENIX_API_KEY": "px-secret"}))
    path, headers = first(receiver)
    assert path == "/v1/traces"
    assert headers["authorization"] == "Bearer px-secret"
    assert headers.keys() - PLAIN == {"authorization"}
    assert receiver.wait(4)[0].resource["openinference.project.name"] == "penny"


def test_phoenix_needs_no_key(start, receiver):
    request(start(to="phoenix"))
    assert first(receiver)[1].keys() - PLAIN == set()


@pytest.fixture
def set_headers(monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-team=secret%20one,x-other=2")
    return {"OTEL_EXPORTER_OTLP_HEADERS": "x-team=secret%20one,x-other=2"}


def test_any_other_receiver_gets_the_headers_of_the_environment(start, receiver, set_headers):
    request(start(to="otlp", environ=set_headers))
    path, headers = first(receiver)
    assert path == "/v1/traces"
    assert (headers["x-team"], headers["x-other"]) == ("secret one", "2")


def test_headers_meant_for_one_receiver_are_not_sent_to_another(start, receiver, set_headers):
    request(start(to="langsmith", environ=set_headers))
    assert first(receiver)[1].keys() - PLAIN == {"x-api-key"}


def test_a_netrc_file_does_not_replace_the_key(start, receiver, tmp_path, monkeypatch):
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login someone password else\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    request(start(to="phoenix", environ={"PHOENIX_API_KEY": "px-secret"}))
    assert first(receiver)[1]["authorization"] == "Bearer px-secret"


@pytest.mark.parametrize(
    ("to", "endpoint", "url"),
    [
        ("langfuse", None, "https://cloud.langfuse.com/api/public/otel/v1/traces"),
        (
            "langfuse",
            "https://us.cloud.langfuse.com",
            "https://us.cloud.langfuse.com/api/public/otel/v1/traces",
        ),
        (
            "langfuse",
            "https://lf.example.org/api/public/otel",
            "https://lf.example.org/api/public/otel/v1/traces",
        ),
        ("langsmith", None, "https://api.smith.langchain.com/otel/v1/traces"),
        (
            "langsmith",
            "https://ai-company.com/api/v1",
            "https://ai-company.com/api/v1/otel/v1/traces",
        ),
        ("langsmith", "https://ls.example.org/otel", "https://ls.example.org/otel/v1/traces"),
        ("phoenix", None, "http://127.0.0.1:6006/v1/traces"),
        ("phoenix", "http://phoenix:6006/v1/traces", "http://phoenix:6006/v1/traces"),
        ("otlp", None, "http://127.0.0.1:4318/v1/traces"),
        ("otlp", "http://collector:4318/", "http://collector:4318/v1/traces"),
    ],
)
def test_the_path_is_completed_as_each_tool_documents_it(to, endpoint, url):
    assert target(TracesConfig(to=to, endpoint=endpoint), KEYS).url == url


# -- keys ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("to", "environ", "named"),
    [
        ("langfuse", {"LANGFUSE_SECRET_KEY": "s"}, "LANGFUSE_PUBLIC_KEY is not set"),
        ("langfuse", {"LANGFUSE_PUBLIC_KEY": "p"}, "LANGFUSE_SECRET_KEY is not set"),
        ("langsmith", {"LANGSMITH_API_KEY": "  "}, "LANGSMITH_API_KEY is not set"),
    ],
)
def test_a_missing_key_is_named_before_anything_is_served(to, environ, named):
    with pytest.raises(PenstockError, match=named):
        Tracer(TracesConfig(to=to), environ=environ)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LANGSMITH_API_KEY", "secret\nx-injected: 1"),
        ("LANGSMITH_API_KEY", "sec\u2028ret"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "secret"),
        ("OTEL_EXPORTER_OTLP_HEADERS", 'x-key=sec"ret'),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-key=sec%0Aret"),
        ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "a=1,secret;x"),
    ],
)
def test_a_key_that_no_header_can_hold_is_refused_and_not_shown(name, value):
    environ = {"LANGSMITH_API_KEY": "good", name: value}
    with pytest.raises(PenstockError, match=name) as caught:
        target(TracesConfig(to="langsmith"), environ)
    assert "sec" not in f"{caught.value.message} {caught.value.hint}"


def test_keys_are_in_no_repr():
    for to in ("langfuse", "langsmith"):
        assert "secret" not in repr(target(TracesConfig(to=to), KEYS))


# -- what the tools demand of attributes -----------------------------------------


def test_langfuse_finds_its_own_attributes(start, receiver):
    """By "Attribute Mapping" and "Propagating Trace Attributes to All Spans"."""
    request(start(to="langfuse", content=True, redact=False))
    spans = receiver.wait(4)
    for span in spans:
        shown = span.attributes
        assert shown["langfuse.session.id"] == "conversation-7"
        assert shown["langfuse.version"] == "3"
        assert shown["langfuse.trace.name"] == "/v1/chat/completions"
        assert shown["langfuse.trace.metadata.response_id"] == RESPONSE_ID
        assert shown["langfuse.trace.metadata.tenant"] == "acme"
        assert shown["langfuse.trace.metadata.digest"] == LINEAGE["digest"]
    steps = by_step(spans)
    types = {name: span.attributes["langfuse.observation.type"] for name, span in steps.items()}
    assert types == {"gateway": "span", "route": "span", "queue": "span", "backend": "generation"}
    call = steps["backend"].attributes
    assert call["langfuse.observation.model.name"] == "penny"
    assert json.loads(call["langfuse.observation.usage_details"]) == {
        "input": 12,
        "output": 8,
        "total": 20,
    }
    assert json.loads(call["langfuse.observation.cost_details"]) == {"total": 0.002}
    assert json.loads(call["langfuse.observation.model.parameters"])["temperature"] == 0.5
    assert json.loads(call["langfuse.observation.input"])[1]["content"] == PROMPT[1][1]
    assert call["langfuse.observation.output"] == ANSWER


def test_langfuse_counts_no_tokens_twice(start, receiver):
    """It takes any span with a model for a generation, and adds up all of them."""
    request(start(to="langfuse"))
    for span in receiver.wait(4):
        if span.attributes["penstock.step"] != "backend":
            assert not [name for name in span.attributes if name.startswith("gen_ai.usage")]
            assert not [name for name in span.attributes if name.endswith("model")]


def test_langfuse_sees_when_the_first_token_came(start, receiver):
    from datetime import datetime

    request(start(to="langfuse"))
    call = by_step(receiver.wait(4))["backend"]
    first_token = call.attributes["langfuse.observation.completion_start_time"]
    after_s = datetime.fromisoformat(first_token).timestamp() - call.start_ns / 1e9
    assert after_s == pytest.approx(0.125, abs=1e-3)


def test_langsmith_finds_its_own_attributes(start, receiver):
    """By "Supported OpenTelemetry attribute and event mapping"."""
    request(start(to="langsmith", content=True, redact=False))
    spans = receiver.wait(4)
    steps = by_step(spans)
    kinds = {name: span.attributes["langsmith.span.kind"] for name, span in steps.items()}
    assert kinds == {"gateway": "chain", "route": "chain", "queue": "chain", "backend": "llm"}
    for span in spans:
        assert span.attributes["langsmith.metadata.session_id"] == "conversation-7"
        assert span.attributes["langsmith.metadata.response_id"] == RESPONSE_ID
        # This would name a project, not a conversation.
        assert "langsmith.trace.session_id" not in span.attributes
    call = steps["backend"].attributes
    assert call["gen_ai.system"] == "ctranslate2"
    assert call["gen_ai.response.model"] == "penny"
    assert call["gen_ai.usage.input_tokens"] == 12
    assert call["gen_ai.usage.output_tokens"] == 8
    assert call["gen_ai.usage.total_tokens"] == 20
    assert call["gen_ai.prompt.1.role"] == "user"
    assert call["gen_ai.prompt.1.content"] == PROMPT[1][1]
    assert call["gen_ai.completion.0.content"] == ANSWER
    assert steps["gateway"].attributes["output.value"] == ANSWER


def test_genai_and_openinference_names_are_those_of_the_pinned_versions(start, receiver):
    request(start(to="otlp", content=True, redact=False))
    steps = by_step(receiver.wait(4))
    call = steps["backend"].attributes
    assert (
        call
        | {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "ctranslate2",
            "gen_ai.request.model": "support",
            "gen_ai.response.model": "penny",
            "gen_ai.response.id": RESPONSE_ID,
            "gen_ai.conversation.id": "conversation-7",
            "gen_ai.request.temperature": 0.5,
            "gen_ai.request.top_p": 0.9,
            "gen_ai.request.max_tokens": 64,
            "gen_ai.request.seed": 17,
            "gen_ai.request.stream": True,
            "gen_ai.response.finish_reasons": ["stop"],
            "gen_ai.response.time_to_first_chunk": 0.125,
            "gen_ai.usage.input_tokens": 12,
            "gen_ai.usage.output_tokens": 8,
            "openinference.span.kind": "LLM",
            "llm.model_name": "penny",
            "llm.token_count.prompt": 12,
            "llm.token_count.completion": 8,
            "llm.token_count.total": 20,
            "llm.finish_reason": "stop",
            "llm.cost.total": 0.002,
            "session.id": "conversation-7",
            "llm.input_messages.0.message.role": "system",
            "llm.output_messages.0.message.content": ANSWER,
            "output.value": ANSWER,
        }
        == call
    )
    assert json.loads(call["gen_ai.output.messages"]) == [
        {
            "role": "assistant",
            "parts": [{"type": "text", "content": ANSWER}],
            "finish_reason": "stop",
        }
    ]
    root = steps["gateway"].attributes
    assert root["http.request.method"] == "POST"
    assert root["http.route"] == "/v1/chat/completions"
    assert root["http.response.status_code"] == 200
    assert json.loads(root["metadata"])["run_id"] == LINEAGE["run_id"]
    assert root["penstock.data_version"] == LINEAGE["data_version"]
    assert steps["queue"].attributes["penstock.queue_s"] == 0.25
