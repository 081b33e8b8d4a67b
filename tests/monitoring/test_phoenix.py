"""Traces in a real Phoenix, read back by its own API."""

import json

import pytest
from prometheus_client import CollectorRegistry

import phoenix_server
from penstock.monitoring.traces import Tracer
from penstock.traces_section import TracesConfig
from traced_request import ANSWER, LINEAGE, PROMPT, RESPONSE_ID, request

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def phoenix(tmp_path_factory):
    if reason := phoenix_server.missing():
        pytest.skip(f"Phoenix's environment: {reason}")
    server = phoenix_server.Phoenix(tmp_path_factory.mktemp("phoenix"))
    try:
        yield server.start()
    finally:
        server.stop()


def sent(phoenix, project, key=phoenix_server.KEY, **settings):
    """One request's trace, and what the metric says became of it."""
    registry = CollectorRegistry()
    config = TracesConfig(to="phoenix", endpoint=phoenix.url, project=project, **settings)
    tracer = Tracer(config, registry, {"PHOENIX_API_KEY": key})
    tracer.start()
    trace = request(tracer)
    tracer.close(30)
    outcomes = {
        name: registry.get_sample_value("penstock_traces_total", {"outcome": name})
        for name in ("sent", "failed")
    }
    return trace, outcomes


def by_name(spans):
    return {span["name"]: span for span in spans}


def test_phoenix_shows_a_request_with_its_steps_model_tokens_and_session(phoenix):
    trace, outcomes = sent(phoenix, "penny")
    assert outcomes == {"sent": 1, "failed": 0}
    spans = by_name(phoenix.spans("penny", 4))
    assert spans.keys() == {"gateway", "route", "queue", "chat penny"}
    root, call = spans["gateway"], spans["chat penny"]
    assert {span["context"]["trace_id"] for span in spans.values()} == {trace.id}
    assert root["parent_id"] is None
    assert call["parent_id"] == root["context"]["span_id"]
    assert (root["span_kind"], call["span_kind"]) == ("CHAIN", "LLM")
    shown = call["attributes"]
    assert shown["llm.model_name"] == "penny"
    assert shown["llm.token_count.prompt"] == 12
    assert shown["llm.token_count.completion"] == 8
    assert json.loads(shown["llm.invocation_parameters"])["temperature"] == 0.5
    assert root["attributes"]["session.id"] == "conversation-7"
    text = json.dumps(spans)
    assert "ann@example.org" not in text
    assert "You help" not in text


def test_a_trace_is_found_in_phoenix_from_a_response_id(phoenix):
    trace, _ = sent(phoenix, "found")
    spans = phoenix.spans("found", 4)
    (hit,) = [one for one in spans if one["attributes"].get("gen_ai.response.id") == RESPONSE_ID]
    assert hit["context"]["trace_id"] == trace.id
    root = by_name(spans)["gateway"]["attributes"]
    assert root["metadata.response_id"] == RESPONSE_ID
    assert root["metadata.digest"] == LINEAGE["digest"]


def test_content_that_was_asked_for_is_there_and_redacted(phoenix):
    sent(phoenix, "content", content=True)
    call = by_name(phoenix.spans("content", 4))["chat penny"]["attributes"]
    assert call["output.value"] == ANSWER.replace("ann@example.org", "[EMAIL]")
    asked = call["llm.input_messages.1.message.content"]
    assert asked == PROMPT[1][1].replace("ann@example.org", "[EMAIL]")


def test_tokens_and_cost_of_a_request_are_counted_once(phoenix):
    sent(phoenix, "once")
    spans = phoenix.spans("once", 4)
    counts = [span["attributes"].get("llm.token_count.prompt") for span in spans]
    assert [count for count in counts if count] == [12]


def test_a_wrong_key_is_refused_by_phoenix_and_counted(phoenix):
    _, outcomes = sent(phoenix, "refused", key="px-not-a-key")
    assert outcomes == {"sent": 0, "failed": 1}
