import threading
import time

import pytest

from penstock.errors import Overloaded
from penstock.monitoring import trace_export, traces
from penstock.monitoring.span_attributes import SCHEMA_URL, TABLE_VERSION
from penstock.monitoring.traces import MAX_CONTENT_CHARS, Tracer
from traced_request import RESPONSE_ID, by_step, request

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_a_request_becomes_one_trace_of_four_spans_under_the_gateways(start, receiver):
    trace = request(start())
    spans = receiver.wait(4)
    steps = by_step(spans)
    assert {span.trace_id for span in spans} == {trace.id}
    assert steps.keys() == {"gateway", "route", "queue", "backend"}
    assert steps["gateway"].parent_id == ""
    assert {steps[one].parent_id for one in ("route", "queue", "backend")} == {
        steps["gateway"].span_id
    }
    assert [span.name for span in spans] == ["gateway", "route", "queue", "chat penny"]
    assert [span.kind for span in spans] == ["SERVER", "INTERNAL", "INTERNAL", "CLIENT"]
    assert {span.scope for span in spans} == {("penstock.gateway", str(TABLE_VERSION), SCHEMA_URL)}
    assert spans[0].resource["service.name"] == "penstock"


def test_steps_lie_within_the_request_and_in_their_order(start, receiver):
    before_ns = time.time_ns()
    request(start())
    spans = by_step(receiver.wait(4))
    times = [
        before_ns - 1_000_000_000,
        spans["gateway"].start_ns,
        spans["route"].start_ns,
        spans["route"].end_ns,
        spans["queue"].start_ns,
        spans["queue"].end_ns,
        spans["backend"].start_ns,
        spans["backend"].end_ns,
        spans["gateway"].end_ns,
        time.time_ns() + 1_000_000_000,
    ]
    assert times == sorted(times)


def test_a_trace_is_found_from_the_response_id_and_back(start, receiver):
    unique = RESPONSE_ID.rpartition("-")[2]
    trace = request(start(), unique=unique)
    steps = by_step(receiver.wait(4))
    assert trace.id == unique
    assert trace.headers(200) == {"x-penstock-trace": unique}
    assert steps["gateway"].attributes["penstock.response_id"] == RESPONSE_ID
    assert steps["backend"].attributes["gen_ai.response.id"] == RESPONSE_ID


def test_without_a_configuration_nothing_is_kept_and_nothing_is_sent():
    tracer = Tracer(None)
    tracer.start()
    trace = request(tracer)
    assert (trace.id, trace.headers(500), trace.wants_content) == ("", {}, False)
    assert trace.span("backend").traceparent is None
    tracer.close(1)


# -- whose trace it is -----------------------------------------------------------


def test_a_callers_trace_is_not_continued_unless_it_is_trusted(start, receiver):
    trace = request(start(), traceparent=PARENT)
    assert trace.id != "0af7651916cd43dd8448eb211c80319c"
    assert by_step(receiver.wait(4))["gateway"].parent_id == ""


def test_a_trusted_callers_trace_is_continued(start, receiver):
    tracer = start(trust_traceparent=True)
    assert request(tracer, traceparent=PARENT).id == "0af7651916cd43dd8448eb211c80319c"
    assert by_step(receiver.wait(4))["gateway"].parent_id == "b7ad6b7169203331"


def test_a_request_is_a_span_that_its_response_id_names_in_any_trace(start, receiver):
    unique = "019ac5d0f3a07c1e8d2f3a4b5c6d7e8f"
    request(start(trust_traceparent=True), traceparent=PARENT, unique=unique)
    root = by_step(receiver.wait(4))["gateway"]
    assert (root.trace_id, root.span_id) == ("0af7651916cd43dd8448eb211c80319c", unique[-16:])


def test_ending_says_whether_the_trace_is_kept(start):
    tracer = start(sample=0)
    assert tracer.begin().end(200) is False
    assert tracer.begin().end(500) is True
    assert start().begin().end(200) is True


def test_a_trusted_caller_decides_what_is_sampled(start):
    tracer = start(trust_traceparent=True, sample=0)
    assert tracer.begin(PARENT).headers(200)
    assert not start(trust_traceparent=True).begin(PARENT[:-1] + "0").headers(200)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
        "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
        "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
        "x" * 10_000,
    ],
)
def test_a_malformed_traceparent_begins_a_trace_of_its_own(start, header):
    trace = start(trust_traceparent=True).begin(header)
    assert len(trace.id) == 32
    assert trace.id != "0af7651916cd43dd8448eb211c80319c"


def test_a_later_version_of_traceparent_is_read_as_far_as_it_is_known(start):
    trace = start(trust_traceparent=True).begin("cc" + PARENT[2:] + "-what-comes-next")
    assert trace.id == "0af7651916cd43dd8448eb211c80319c"


def test_a_backend_is_told_its_span_and_whether_it_is_sampled(start):
    for share, flag in ((1, "01"), (0, "00")):
        trace = start(sample=share).begin()
        with trace.span("backend") as span:
            version, trace_id, span_id, given = span.traceparent.split("-")
        assert (version, trace_id, given) == ("00", trace.id, flag)
        assert int(span_id, 16) == span.number


# -- what is kept ----------------------------------------------------------------


@pytest.mark.slow
def test_the_sample_is_the_share_that_was_asked_for_and_the_same_everywhere(start):
    tracer, other = start(sample=0.25), start(sample=0.25)
    begun = [tracer.begin() for _ in range(4_000)]
    kept = [trace for trace in begun if trace.sampled]
    assert 850 < len(kept) < 1_150
    assert all(other.begin(unique=trace.id).sampled == trace.sampled for trace in begun)


def test_ids_of_version_7_are_sampled_evenly_too(start):
    from penstock.serving.response_id import uuid7_hex

    tracer = start(sample=0.25)
    kept = [one for one in range(4_000) if tracer.begin(unique=uuid7_hex()).sampled]
    assert 850 < len(kept) < 1_150


def test_failures_are_kept_whatever_the_sample(start, receiver):
    tracer = start(sample=0)
    request(tracer)
    failed = request(tracer, status=503, error="NotReady")
    assert failed.headers(503) == {"x-penstock-trace": failed.id}
    spans = receiver.wait(4)
    tracer.close(5)
    assert {span.trace_id for span in spans} == {failed.id}
    gateway = by_step(spans)["gateway"]
    assert (gateway.status, gateway.message) == ("ERROR", "NotReady")
    assert gateway.attributes["error.type"] == "NotReady"
    assert gateway.attributes["http.response.status_code"] == 503


def test_a_failed_attempt_is_kept_though_another_answered(start, receiver):
    tracer = start(sample=0)
    trace = tracer.begin()
    trace.note(operation="chat", model="penny", prompt_tokens=5)
    with pytest.raises(ConnectionError), trace.span("backend", attempt=1, model="first"):
        raise ConnectionError("what the user said")
    with trace.span("backend", attempt=2):
        pass
    trace.end(200)
    first, second = receiver.wait(3)[1:]
    assert (first.name, first.status, first.message) == ("first", "ERROR", "ConnectionError")
    assert "gen_ai.usage.input_tokens" not in first.attributes
    assert (second.name, second.status) == ("chat penny", "UNSET")
    assert second.attributes["gen_ai.usage.input_tokens"] == 5


def test_a_refused_request_is_no_failure_of_the_gateway(start, receiver):
    request(start(), status=429, error="Overloaded")
    assert by_step(receiver.wait(4))["gateway"].status == "UNSET"
    assert not request(start(sample=0), status=404).headers(404)


def test_a_step_that_refused_is_no_failure_that_is_always_kept(start, receiver):
    tracer = start()
    for _ in range(2):
        trace = tracer.begin()
        with pytest.raises(Overloaded), trace.span("queue"):
            raise Overloaded("Full.", retry_after_s=1)
        trace.sampled = not receiver.spans
        trace.end(429, "overloaded")
        receiver.wait(2)
    tracer.close(5)
    assert len(receiver.spans) == 2
    queue = by_step(receiver.spans)["queue"]
    assert (queue.status, queue.attributes["error.type"]) == ("UNSET", "Overloaded")


def test_a_client_that_leaves_is_seen_and_is_no_failure(start, receiver):
    trace = start().begin()
    with pytest.raises(GeneratorExit), trace.span("backend"):
        raise GeneratorExit
    trace.end(499)
    backend = by_step(receiver.wait(2))["backend"]
    assert backend.status == "UNSET"
    assert backend.attributes["penstock.cancelled"] is True


def test_what_is_told_after_the_end_changes_nothing(start, receiver):
    trace = start(content=True).begin()
    span = trace.span("backend", model="penny")
    trace.end(200)
    trace.end(500)
    span.note(model="other")
    trace.note(tenant="other")
    trace.answer("late")
    trace.span("queue")
    spans = by_step(receiver.wait(2))
    assert spans.keys() == {"gateway", "backend"}
    assert spans["gateway"].attributes["http.response.status_code"] == 200
    assert spans["backend"].name == "penny"
    assert spans["backend"].end_ns == spans["gateway"].end_ns


def test_a_classifier_asked_on_the_way_is_not_taken_for_the_answer(start, receiver):
    trace = start(content=True).begin()
    trace.note(operation="chat", model="penny", completion_tokens=8)
    with (
        trace.span("route") as route,
        trace.span("backend", route, operation="classify", model="intents"),
    ):
        pass
    with trace.span("backend"):
        pass
    trace.answer("Yes.")
    trace.end(200)
    _, route, classified, answered = receiver.wait(4)
    assert classified.parent_id == route.span_id
    assert classified.name == "classify intents"
    assert "output.value" not in classified.attributes
    assert "gen_ai.usage.output_tokens" not in classified.attributes
    assert answered.attributes["output.value"] == "Yes."


# -- content ---------------------------------------------------------------------


def everything(spans):
    return repr([(span.attributes, span.message, span.name) for span in spans])


def test_without_content_no_word_of_prompt_or_answer_is_sent(start, receiver):
    request(start(), status=500, error="ValueError")
    text = everything(receiver.wait(4))
    assert "ann@example.org" not in text
    assert "You help" not in text
    assert "I wrote" not in text


def test_content_is_redacted_unless_that_is_turned_off(start, receiver):
    request(start(content=True))
    spans = receiver.wait(4)
    assert "ann@example.org" not in everything(spans)
    assert by_step(spans)["backend"].attributes["output.value"] == "Done: I wrote to [EMAIL]."
    request(start(content=True, redact=False))
    assert "I wrote to ann@example.org" in everything(receiver.wait(8)[4:])


def test_an_address_given_as_session_or_user_is_redacted_too(start, receiver):
    trace = start().begin()
    trace.note(session="ann@example.org", user="bob@example.org")
    trace.end(200)
    attributes = receiver.wait(1)[0].attributes
    assert attributes["gen_ai.conversation.id"] == "[EMAIL]"
    assert attributes["user.id"] == "[EMAIL]"


def test_of_long_content_the_end_of_the_prompt_and_the_start_of_the_answer_are_sent(
    start, receiver
):
    trace = start(content=True, redact=False).begin()
    trace.note(operation="chat")
    with trace.span("backend"):
        pass
    trace.prompt([("system", "s" * 10_000), ("user", "u" * 10_000 + "?")])
    trace.answer("!" + "a" * 100_000)
    trace.end(200)
    sent = by_step(receiver.wait(2))["backend"].attributes
    assert sent["output.value"] == "!" + "a" * (MAX_CONTENT_CHARS - 1)
    assert sent["llm.input_messages.1.message.content"].endswith("u?")
    assert len(sent["llm.input_messages.0.message.content"]) == MAX_CONTENT_CHARS - 10_001


def test_a_secret_at_the_edge_of_what_is_sent_is_not_cut_in_two(start, receiver):
    key = "sk-" + "Aa1" * 20
    trace = start(content=True).begin()
    trace.prompt([("user", "Hi")])
    trace.answer("x " * (MAX_CONTENT_CHARS // 2 - 10) + key)
    trace.end(200)
    sent = receiver.wait(1)[0].attributes["output.value"]
    assert "sk-" not in sent
    assert sent.endswith("[API_KEY]")


def test_halves_of_surrogate_pairs_lose_no_batch(start, receiver):
    trace = start(content=True).begin()
    trace.note(session="\ud83d", tenant="\udc00x")
    trace.prompt([("user", "a\ud800b")])
    trace.end(200)
    attributes = receiver.wait(1)[0].attributes
    assert attributes["input.value"] == "a?b"
    assert attributes["penstock.tenant"] == "?x"


# -- the receiver is slow, away or unwilling -------------------------------------


def finished(count, outcome, number):
    end_s = time.monotonic() + 30
    while count(outcome) < number:
        assert time.monotonic() < end_s
        time.sleep(0.01)


def test_traces_are_counted_when_they_are_sent(start, receiver, outcomes):
    tracer = start()
    for _ in range(3):
        request(tracer)
    tracer.close(10)
    assert len(receiver.spans) == 12
    assert (outcomes("sent"), outcomes("dropped"), outcomes("failed")) == (3, 0, 0)


def test_a_receiver_that_hangs_holds_up_no_request_and_the_end_only_so_long(
    start, receiver, outcomes, monkeypatch
):
    monkeypatch.setattr(trace_export, "_MAX_QUEUED", 10)
    hang = threading.Event()
    receiver.answer = lambda: (hang.wait(20), (200, {}, b""))[1]
    tracer = start()
    # Were a request to wait for the receiver, this would take a minute and more.
    for _ in range(200):
        request(tracer)
    started_s = time.monotonic()
    tracer.close(0.2)
    assert time.monotonic() - started_s < 10
    assert outcomes("dropped") >= 200 - 10 - trace_export._MAX_BATCH
    hang.set()


def test_much_content_fills_the_queue_before_many_traces_do(start, receiver, outcomes, monkeypatch):
    monkeypatch.setattr(trace_export, "_MAX_QUEUED_CHARS", 10_000)
    hang = threading.Event()
    receiver.answer = lambda: (hang.wait(20), (200, {}, b""))[1]
    tracer = start(content=True)
    for _ in range(40):
        trace = tracer.begin()
        trace.answer("a" * 1_000)
        trace.end(200)
    assert outcomes("dropped") >= 20
    hang.set()


def test_a_receiver_that_refuses_is_told_once_without_the_key(start, receiver, outcomes, caplog):
    receiver.answer = lambda: (401, {}, b"no")
    tracer = start(to="langsmith")
    request(tracer)
    finished(outcomes, "failed", 1)
    assert "LANGSMITH_API_KEY" in caplog.text
    assert "lsv2-secret" not in caplog.text
    assert outcomes("sent") == 0


def test_sending_goes_on_when_the_receiver_is_back(start, receiver, outcomes, monkeypatch, caplog):
    monkeypatch.setattr(trace_export, "_LONGEST_PAUSE_S", 0.05)
    receiver.answer = lambda: (400, {}, b"")
    tracer = start()
    request(tracer)
    finished(outcomes, "failed", 1)
    receiver.answer = lambda: (200, {}, b"")
    request(tracer)
    finished(outcomes, "sent", 1)
    assert f"Traces are sent to {receiver.url}/v1/traces again" in caplog.text


def test_a_receiver_that_is_not_there_loses_traces_and_nothing_else(outcomes, monkeypatch):
    from penstock.traces_section import TracesConfig

    monkeypatch.setattr(trace_export, "_TIMEOUT_S", 0.3)
    tracer = Tracer(TracesConfig(to="otlp", endpoint="http://127.0.0.1:9"), outcomes.registry, {})
    tracer.start()
    request(tracer)
    tracer.close(10)
    assert (outcomes("failed"), outcomes("sent")) == (1, 0)


def test_a_redirect_is_a_failure_and_takes_no_key_along(start, receiver, outcomes):
    receiver.answer = lambda: (307, {"location": f"{receiver.url}/elsewhere"}, b"")
    request(start(to="langfuse"))
    finished(outcomes, "failed", 1)
    assert [path for path, _ in receiver.requests] == ["/api/public/otel/v1/traces"]


def test_spans_that_a_receiver_refuses_are_told(start, receiver, outcomes, caplog):
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
        ExportTraceServiceResponse,
    )

    partial = {"rejected_spans": 4, "error_message": "too old"}
    content = ExportTraceServiceResponse(partial_success=partial).SerializeToString()
    receiver.answer = lambda: (200, {"content-type": "application/x-protobuf"}, content)
    request(start())
    finished(outcomes, "sent", 1)
    assert "refused 4 spans: 'too old'" in caplog.text


@pytest.mark.slow
def test_a_tracer_that_is_off_loads_no_opentelemetry():
    import subprocess
    import sys

    script = (
        "import sys; from penstock.monitoring.traces import Tracer; "
        "Tracer(None).begin().end(200); "
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "[]\n"


def test_without_the_library_the_extra_is_named(monkeypatch):
    import sys

    from penstock.errors import MissingExtra
    from penstock.traces_section import TracesConfig

    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(MissingExtra, match="opentelemetry-exporter-otlp-proto-http"):
        Tracer(TracesConfig(to="otlp"))


def test_the_margin_for_redaction_is_wider_than_any_secret_but_a_private_key():
    assert traces._MARGIN_CHARS >= 1_024
