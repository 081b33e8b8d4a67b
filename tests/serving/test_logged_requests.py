"""The request log behind a gateway: what a row says about a request that really came."""

import json

import httpx
import pytest
from doubles import model, wait_until

from otlp_receiver import Receiver
from penstock.day_tables import DayTable
from penstock.monitoring.request_log import RequestLog
from penstock.serve_section import LogConfig, RouteConfig

pytestmark = pytest.mark.slow


@pytest.fixture
def table(tmp_path):
    return DayTable(tmp_path / "log")


@pytest.fixture
def logged(gateway, table):
    """Starts a gateway with a log; returns it, and a way to read so many rows."""

    def start(content=True, **settings):
        log = RequestLog(table, LogConfig(flush_s=0.02, content=content))
        server = gateway(observers=[log], **settings)

        def rows(num):
            wait_until(lambda: table.count_rows() >= num)
            found = [row for batch in table.scan() for row in batch.to_pylist()]
            assert len(found) == num
            return sorted(found, key=lambda row: row["received_at"])

        return server, rows

    return start


@pytest.fixture
def receiver():
    with Receiver() as running:
        yield running


def complete(server, prompt, **more):
    body = {"model": "penny", "prompt": prompt, **more}
    return httpx.post(f"{server.url}/v1/completions", json=body)


def test_a_row_has_what_was_asked_and_answered_streamed_or_not(logged):
    server, rows = logged()
    whole = complete(server, "say hello")
    complete(server, "count 3", stream=True)
    turns = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "say hi"}]
    headers = {"x-penstock-conversation": "c1", "x-request-id": "mine"}
    url = f"{server.url}/v1/chat/completions"
    httpx.post(url, json={"model": "penny", "messages": turns}, headers=headers)
    first, second, third = rows(3)
    assert first["response_id"] == whole.json()["id"]
    assert (first["answer"], first["status"], first["finish_reason"]) == ("hello", 200, "stop")
    assert (first["model"], first["version"], first["run_id"]) == ("penny", 1, "run-1")
    assert (first["prompt_tokens"] > 0, first["completion_tokens"]) == (True, 3)
    assert second["answer"] == "v1 0\nv1 1\nv1 2\n"
    assert second["stream"] is True
    assert 0 < second["ttft_s"] <= second["duration_s"]
    assert json.loads(third["prompt"]) == turns
    assert (third["conversation"], third["request_id"]) == ("c1", "mine")


def test_a_shadows_row_has_the_same_request_and_an_answer_of_its_own(logged, fake_folders):
    more = {"shade": model(source=str(fake_folders[2]))}
    routes = {"assistant": RouteConfig(to={"penny": 1}, shadow={"to": "shade"})}
    server, rows = logged(more=more, routes=routes)
    complete(server, "count 2", model="assistant")
    seen, shadow = sorted(rows(2), key=lambda row: row["shadow"])
    assert (seen["shadow"], shadow["shadow"]) == (False, True)
    for name in ("request_id", "prompt", "status", "endpoint"):
        assert seen[name] == shadow[name]
    assert json.loads(seen["prompt"])[-1]["content"] == "count 2"
    assert (seen["answer"], shadow["answer"]) == ("v1 0\nv1 1\n", "v2 0\nv2 1\n")


def test_texts_that_are_embedded_ranked_and_classified_have_their_roles(logged, fake_folders):
    labels = ["billing", "chat"]
    more = {
        "ranks": model(task="rerank", source=str(fake_folders[2])),
        "kinds": model(task="classify", source=str(fake_folders[3]), labels=labels),
    }
    server, rows = logged(more=more)
    for path, body in (
        ("embeddings", {"model": "vectors", "input": ["one", "two"]}),
        ("rerank", {"model": "ranks", "query": "which", "documents": ["this", "that"]}),
        ("classify", {"model": "kinds", "input": ["only me"]}),
        ("classify", {"model": "kinds", "input": ["me", "and me"]}),
    ):
        assert httpx.post(f"{server.url}/v1/{path}", json=body).status_code == 200
    found = rows(4)
    roles = [[turn["role"] for turn in json.loads(row["prompt"])] for row in found]
    assert roles == [["text"] * 2, ["query", "document", "document"], ["user"], ["text"] * 2]
    assert json.loads(found[1]["prompt"])[2]["content"] == "that"
    assert [row["finish_reason"] for row in found] == [None, None, "stop", None]
    assert found[2]["answer"] in labels
    assert [row["answer"] for row in found if row is not found[2]] == [None] * 3


def test_content_is_only_kept_if_it_is_asked_for(logged):
    server, rows = logged(content=False)
    complete(server, "say zebra")
    (row,) = rows(1)
    assert row["prompt"] is row["answer"] is None
    assert "zebra" not in json.dumps(row, default=str)


def test_failures_have_rows_too(logged):
    server, rows = logged(request_timeout_s=1.0)
    complete(server, "hang", stream=True)
    complete(server, "break")
    httpx.post(f"{server.url}/v1/completions", json={"model": "gpt", "prompt": "x"})
    httpx.post(f"{server.url}/v1/completions", content=b"{")
    broken, failed, unknown, unread = rows(4)
    assert (broken["status"], broken["error"], broken["answer"]) == (504, "timeout", "first")
    assert (failed["status"], failed["error"], failed["version"]) == (500, "internal_error", 1)
    assert (unknown["status"], unknown["model"], unknown["asked"]) == (404, "unknown", "unknown")
    assert (unread["status"], unread["response_id"]) == (400, None)


def test_a_client_that_leaves_has_a_row(logged):
    server, rows = logged()
    body = {"model": "penny", "prompt": "hang", "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body) as answer:
        next(answer.iter_bytes())
    (row,) = rows(1)
    assert (row["status"], row["answer"]) == (499, "first")


def test_what_waits_is_written_when_the_gateway_drains(gateway, table):
    log = RequestLog(table, LogConfig(flush_s=3_600))
    server = gateway(observers=[log])
    complete(server, "say hello")
    server.__exit__(None, None, None)
    assert table.count_rows() == 1


def test_a_store_that_cannot_be_written_stops_nobody(gateway, tmp_path):
    (tmp_path / "log").write_text("a file is in the way")
    log = RequestLog(DayTable(tmp_path / "log"), LogConfig(flush_s=0.01))
    server = gateway(observers=[log])
    registry = server.gateway.metrics.registry
    labels = {"table": "log"}
    complete(server, "say hello")
    wait_until(lambda: registry.get_sample_value("penstock_log_failures_total", labels))
    assert complete(server, "say hello").text


def test_a_row_says_which_trace_it_belongs_to_also_a_callers(logged, receiver):
    theirs = "0af7651916cd43dd8448eb211c80319c"
    traces = {"to": "otlp", "endpoint": receiver.url, "trust_traceparent": True}
    server, rows = logged(traces=traces)
    complete(server, "say hello")
    for sampled in ("01", "00"):
        headers = {"traceparent": f"00-{theirs}-b7ad6b7169203331-{sampled}"}
        body = {"model": "penny", "prompt": "say hello"}
        httpx.post(f"{server.url}/v1/completions", json=body, headers=headers)
    own, continued, unsampled = rows(3)
    assert own["trace_id"] == own["response_id"][-32:]
    assert (continued["trace_id"], unsampled["trace_id"]) == (theirs, None)


def test_without_traces_a_row_names_none(logged):
    server, rows = logged()
    complete(server, "say hello")
    assert rows(1)[0]["trace_id"] is None
