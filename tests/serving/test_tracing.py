import pytest

from otlp_receiver import Receiver
from penstock.monitoring import trace_export
from penstock.monitoring.traces import Tracer
from penstock.serving import tracing
from penstock.serving.facts import Facts
from penstock.serving.routes import ServedVersion
from penstock.traces_section import TracesConfig
from traced_request import by_step

SERVED = ServedVersion("penny", 3, 9, None, "ab" * 32, "run-1", "rows@4")


@pytest.fixture
def receiver():
    with Receiver() as running:
        yield running


@pytest.fixture
def tracer(receiver, monkeypatch):
    monkeypatch.setattr(trace_export, "_LINGER_S", 0.02)
    config = TracesConfig(to="otlp", endpoint=receiver.url, content=True)
    tracer = Tracer(config, environ={})
    tracer.start()
    yield tracer
    tracer.close(5)


def facts(**more):
    known = Facts("req-1", "/v1/chat/completions", asked="support", model="penny", served=SERVED)
    known.status = 200
    for name, value in more.items():
        setattr(known, name, value)
    return known


def test_all_that_is_known_of_a_request_is_in_its_trace(tracer, receiver):
    trace = tracer.begin()
    operation = tracing.OPERATIONS["chat"]
    with trace.span("backend", operation=operation, provider="fake"):
        pass
    known = facts(
        response_id="chatcmpl-1",
        conversation="c-1",
        tenant="acme",
        key_id="k-1",
        rollout="r-1",
        arm="challenger",
        prompt_tokens=4,
        completion_tokens=2,
        max_tokens=16,
        temperature=0.0,
        finish_reason="stop",
        stream=True,
        prompt=[{"role": "user", "content": "Mail ann@example.org"}],
        answer="Yes.",
    )
    known.computing_s, known.first_token_s = 10.0, 10.5
    tracing.end(trace, known)
    steps = by_step(receiver.wait(2))
    root, call = steps["gateway"].attributes, steps["backend"].attributes
    assert root["http.response.status_code"] == 200
    assert root["penstock.model.version"] == 3
    assert root["penstock.model.digest"] == SERVED.digest
    assert root["penstock.run_id"] == "run-1"
    assert root["penstock.data_version"] == "rows@4"
    assert root["penstock.arm"] == "challenger"
    assert root["penstock.rollout"] == "r-1"
    assert root["penstock.tenant"] == "acme"
    assert root["input.value"] == "Mail [EMAIL]"
    assert steps["backend"].name == "chat penny"
    assert call["gen_ai.request.model"] == "support"
    assert call["gen_ai.response.model"] == "penny"
    assert call["gen_ai.response.id"] == "chatcmpl-1"
    assert call["gen_ai.conversation.id"] == "c-1"
    assert call["gen_ai.usage.input_tokens"] == 4
    assert call["gen_ai.request.temperature"] == 0.0
    assert call["gen_ai.response.time_to_first_chunk"] == 0.5
    assert call["output.value"] == "Yes."


def test_a_request_that_failed_early_has_a_trace_too(tracer, receiver):
    trace = tracer.begin()
    known = facts(status=503, error="not_ready", served=None)
    tracing.end(trace, known)
    (root,) = receiver.wait(1)
    assert (root.status, root.message) == ("ERROR", "not_ready")
    assert "penstock.model.version" not in root.attributes


def test_without_a_tracer_there_is_nothing_to_tell():
    tracing.end(Tracer(None).begin(), facts())
