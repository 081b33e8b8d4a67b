import httpx
import pytest

from otlp_receiver import Receiver
from penstock.monitoring import trace_export
from traced_request import by_step


@pytest.fixture
def receiver(monkeypatch):
    monkeypatch.setattr(trace_export, "_LINGER_S", 0.02)
    with Receiver() as running:
        yield running


def chat(server, **more):
    asked = {"model": "penny", "messages": [{"role": "user", "content": "Hi"}], **more}
    return httpx.post(f"{server.url}/v1/chat/completions", json=asked, timeout=30)


def test_an_answers_trace_is_found_from_its_header_and_its_id(gateway, receiver):
    server = gateway(traces={"to": "otlp", "endpoint": receiver.url})
    answer = chat(server)
    assert answer.status_code == 200
    spans = receiver.wait(4)
    steps = by_step(spans)
    assert {span.trace_id for span in spans} == {answer.headers["x-penstock-trace"]}
    root, call = steps["gateway"].attributes, steps["backend"].attributes
    assert root["penstock.response_id"] == answer.json()["id"]
    assert answer.json()["id"].endswith(spans[0].trace_id)
    assert root["penstock.model.version"] == 1
    assert steps["route"].attributes["penstock.why"] == "name"
    assert call["gen_ai.operation.name"] == "chat"
    usage = answer.json()["usage"]
    assert call["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert call["gen_ai.usage.output_tokens"] == usage["completion_tokens"]


def test_a_stream_is_one_trace_that_ends_with_its_last_byte(gateway, receiver):
    server = gateway(traces={"to": "otlp", "endpoint": receiver.url})
    answer = chat(server, stream=True)
    assert answer.text.endswith("data: [DONE]\n\n")
    call = by_step(receiver.wait(4))["backend"]
    assert call.attributes["gen_ai.request.stream"] is True
    assert call.status == "UNSET"


def test_embeddings_are_traced(gateway, receiver):
    server = gateway(traces={"to": "otlp", "endpoint": receiver.url})
    asked = {"model": "vectors", "input": ["a", "b"]}
    assert httpx.post(f"{server.url}/v1/embeddings", json=asked).status_code == 200
    call = by_step(receiver.wait(4))["backend"]
    assert call.name == "embeddings vectors"
    assert call.attributes["openinference.span.kind"] == "EMBEDDING"


def test_a_refused_request_has_a_trace_with_its_status(gateway, receiver):
    server = gateway(traces={"to": "otlp", "endpoint": receiver.url})
    assert chat(server, model="nobody").status_code == 404
    root = by_step(receiver.wait(2))["gateway"]
    assert root.attributes["http.response.status_code"] == 404


def test_without_traces_there_is_no_header(gateway):
    assert "x-penstock-trace" not in chat(gateway()).headers


def test_what_is_left_is_sent_when_the_gateway_stops(gateway, receiver, monkeypatch):
    monkeypatch.setattr(trace_export, "_LINGER_S", 60)
    server = gateway(traces={"to": "otlp", "endpoint": receiver.url})
    chat(server)
    assert receiver.spans == []
    server.__exit__(None, None, None)
    assert len(receiver.spans) == 4
