"""Every answer says which version gave it; no client says so."""

import json

import httpx
import pytest
from doubles import model

from penstock.day_tables import DayTable
from penstock.monitoring.request_log import RequestLog
from penstock.serve_section import LogConfig

PENNY = {
    "x-penstock-model": "penny",
    "x-penstock-model-version": "1",
    "x-penstock-run": "run-1",
    "x-penstock-data-version": "data-1",
}
FORGED = {
    "x-penstock-model": "evil",
    "x-penstock-model-version": "99",
    "x-penstock-run": "forged",
    "x-penstock-data-version": "forged",
    "x-penstock-anything": "forged",
}
CHAT = {"model": "penny", "messages": [{"role": "user", "content": "hi"}]}
TEXT = {"model": "penny", "prompt": "say hello"}
TEXTS = ["say hello"]


@pytest.fixture
def server(gateway, fake_folders):
    source = str(fake_folders[2])
    labels = ["hello", "other"]
    return gateway(
        request_timeout_s=1.0,
        more={
            "ranker": model(task="rerank", source=source),
            "intent": model(task="classify", source=source, labels=labels),
        },
    )


def lineage(answer):
    """The headers about origins, the request's id aside."""
    return {name: value for name, value in answer.headers.items() if name in PENNY}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "body", "name"),
    [
        ("/v1/chat/completions", CHAT, "penny"),
        ("/v1/chat/completions", CHAT | {"stream": True}, "penny"),
        ("/v1/completions", TEXT, "penny"),
        ("/v1/completions", TEXT | {"stream": True}, "penny"),
        ("/v1/embeddings", {"model": "vectors", "input": TEXTS}, "vectors"),
        ("/v1/rerank", {"model": "ranker", "query": "q", "documents": TEXTS}, "ranker"),
        ("/v2/rerank", {"model": "ranker", "query": "q", "documents": TEXTS}, "ranker"),
        ("/v1/classify", {"model": "intent", "input": TEXTS}, "intent"),
        ("/", {"endpoint": "generate", "prompt": "say hello"}, "penny"),
        ("/", {"endpoint": "embed", "texts": TEXTS}, "vectors"),
        ("/", {"endpoint": "rerank", "query": "q", "documents": TEXTS}, "ranker"),
        ("/", {"endpoint": "classify", "texts": TEXTS}, "intent"),
    ],
)
def test_every_answer_says_which_version_gave_it(server, path, body, name):
    answer = httpx.post(f"{server.url}{path}", json=body, headers=FORGED)
    assert answer.status_code == 200
    assert lineage(answer)["x-penstock-model"] == name
    assert lineage(answer).keys() == PENNY.keys()
    assert "forged" not in str(answer.headers)
    assert "99" not in lineage(answer).values()
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/completions", TEXT | {"prompt": "break"}, 500),
        ("/v1/completions", TEXT | {"prompt": "break", "stream": True}, 500),
        ("/v1/chat/completions", CHAT | {"max_tokens": 10_000}, 400),
        ("/v1/completions", TEXT | {"prompt": "hang"}, 504),
        ("/", {"endpoint": "generate", "prompt": "break"}, 500),
    ],
)
def test_an_error_of_a_model_says_which_version_it_was(server, path, body, status):
    answer = httpx.post(f"{server.url}{path}", json=body, headers=FORGED)
    assert answer.status_code == status
    assert lineage(answer) == PENNY
    assert answer.headers["x-request-id"]


@pytest.mark.slow
def test_a_stream_that_breaks_has_said_it_at_its_start(server):
    body = TEXT | {"prompt": "hang", "stream": True}
    answer = httpx.post(f"{server.url}/v1/completions", json=body)
    *_, last = [line for line in answer.text.split("\n\n") if line]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "timeout"
    assert lineage(answer) == PENNY


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/v1/completions", {"model": "gpt", "prompt": "x"}, 404),
        ("POST", "/v1/completions", {"model": "vectors", "prompt": "x"}, 400),
        ("POST", "/v1/completions", {"model": "penny"}, 400),
        ("POST", "/v1/feedback", {"response_id": "x", "thumb": "up"}, 404),
        ("POST", "/nowhere", {}, 404),
        ("PUT", "/v1/completions", {}, 405),
        ("GET", "/v1/models", None, 200),
        ("GET", "/healthz", None, 200),
        ("GET", "/readyz", None, 200),
    ],
)
def test_where_no_model_answered_no_version_is_named(server, method, path, body, status):
    answer = httpx.request(method, f"{server.url}{path}", json=body, headers=FORGED)
    assert answer.status_code == status
    assert not any(name.startswith("x-penstock-") for name in answer.headers)
    assert answer.headers["x-request-id"]


def test_a_model_that_is_not_loaded_yet_is_no_version(gateway, pointer):
    pointer.version = None
    server = gateway(ready=False)
    answer = httpx.post(f"{server.url}/v1/completions", json=TEXT, headers=FORGED)
    assert answer.status_code == 503
    assert lineage(answer) == {}
    assert answer.headers["x-request-id"]


def test_what_a_client_says_about_lineage_is_not_believed(gateway, tmp_path):
    table = DayTable(tmp_path / "log")
    server = gateway(observers=[RequestLog(table, LogConfig(flush_s=3_600))])
    httpx.post(f"{server.url}/v1/completions", json=TEXT, headers=FORGED)
    server.__exit__(None, None, None)
    (row,) = [row for batch in table.scan() for row in batch.to_pylist()]
    assert (row["model"], row["version"], row["run_id"]) == ("penny", 1, "run-1")
    assert "forged" not in str(row)
