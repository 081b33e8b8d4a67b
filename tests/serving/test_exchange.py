import asyncio
import json

import pytest
from doubles import Pointer, model

from penstock.errors import Overloaded, UnknownModel
from penstock.serve_section import Serve
from penstock.serving.app import create_app
from penstock.serving.exchange import ExchangeLayer
from penstock.serving.gateway import Gateway, Surroundings

LIMIT_BYTES = 2_048


def layer(app=None, **settings):
    """The exchange layer around ``app``, or the whole gateway."""
    config = Serve(models={"m": model()}, max_body_bytes=LIMIT_BYTES, **settings)
    around = Surroundings(Pointer())
    if app is None:
        return create_app(config, around)
    return ExchangeLayer(app, Gateway(config, around))


async def ask(app, path="/x", method="POST", body=(b"",), headers=(), then=None):
    """Send a request; returns status, headers, body and the number of body parts read."""
    parts, num_read, sent = list(body), 0, []
    left = asyncio.Event()

    async def receive():
        nonlocal num_read
        if parts:
            num_read += 1
            return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}
        if then != "leave":
            await left.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "headers": list(headers)}
    await asyncio.wait_for(app(scope, receive, send), 10)
    if not sent:
        return None, {}, b"", num_read
    head = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    content = b"".join(message.get("body", b"") for message in sent[1:])
    return sent[0]["status"], head, content, num_read


def count(app, status, endpoint="other"):
    labels = {"model": "unknown", "endpoint": endpoint, "status": str(status)}
    return app.gateway.metrics.registry.get_sample_value("llm_requests_total", labels)


async def echo(scope, receive, send):
    exchange = scope["state"]["exchange"]
    await exchange.start(200, {})
    await exchange.send({"type": "http.response.body", "body": exchange.body})


def test_a_body_is_handed_on_whole():
    _, _, content, _ = asyncio.run(ask(layer(echo), body=[b"a" * 1_000, b"b" * 1_048]))
    assert content == b"a" * 1_000 + b"b" * 1_048


def test_a_body_that_is_announced_too_long_is_refused_before_it_is_read():
    headers = [(b"content-length", b"100000000"), (b"expect", b"100-continue")]
    status, head, content, num_read = asyncio.run(ask(layer(echo), headers=headers))
    assert (status, num_read) == (413, 0)
    assert head["connection"] == "close"
    error = json.loads(content)["error"]
    assert error["code"] == "request_too_large"
    assert "100000000" in error["message"]
    assert str(LIMIT_BYTES) in error["message"]


def test_a_body_that_grows_too_long_is_refused_and_thrown_away():
    parts = [b"x" * 1_000] * 50
    status, _, content, num_read = asyncio.run(ask(layer(echo), body=parts))
    assert status == 413
    assert json.loads(content)["error"]["type"] == "invalid_request_error"
    # The rest was read, so the client sees the answer, but it was not kept.
    assert num_read == 50


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (UnknownModel("no"), 404, "invalid_request_error"),
        (Overloaded("full", retry_after_s=2.4), 429, "rate_limit_error"),
        (ZeroDivisionError("secret"), 500, "server_error"),
    ],
)
def test_an_error_has_openais_shape(error, status, kind):
    async def fail(scope, receive, send):
        raise error

    app = layer(fail)
    got, head, content, _ = asyncio.run(ask(app))
    assert got == status
    shown = json.loads(content)["error"]
    assert set(shown) == {"message", "type", "param", "code"}
    assert shown["type"] == kind
    assert "secret" not in content.decode()
    assert head["content-type"] == "application/json"
    assert head.get("retry-after") == ("3" if status == 429 else None)
    assert count(app, status) == 1


def test_a_client_that_leaves_ends_the_work():
    ended = []

    async def hang(scope, receive, send):
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append(True)

    app = layer(hang)
    asyncio.run(ask(app, then="leave"))
    assert ended == [True]
    assert count(app, 499) == 1


def test_an_answer_that_takes_too_long_is_a_504():
    async def hang(scope, receive, send):
        await asyncio.sleep(3600)

    status, _, content, _ = asyncio.run(ask(layer(hang, request_timeout_s=0.05)))
    assert status == 504
    assert json.loads(content)["error"]["code"] == "timeout"


def test_a_stream_that_takes_too_long_ends_with_an_error_event():
    async def hang(scope, receive, send):
        exchange = scope["state"]["exchange"]
        exchange.facts.stream = True
        await exchange.start(200, {})
        await exchange.send(
            {"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True}
        )
        await asyncio.sleep(3600)

    app = layer(hang, request_timeout_s=0.05)
    _, _, content, _ = asyncio.run(ask(app))
    first, last = content.decode().strip().split("\n\n")
    assert first == "data: 1"
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "timeout"
    assert count(app, 504) == 1


@pytest.mark.parametrize(
    ("given", "kept"), [(b"abc-1", True), (b"a" * 129, False), (b"a\r\nb", False), (b"", False)]
)
def test_a_request_id_is_echoed_if_it_is_harmless(given, kept):
    _, head, _, _ = asyncio.run(ask(layer(echo), headers=[(b"x-request-id", given)]))
    assert (head["x-request-id"] == given.decode()) is kept
    assert kept or head["x-request-id"].startswith("req-")


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [
        ("/nope", "GET", 404),
        ("/v1/", "GET", 404),
        ("/v1/completions/", "POST", 404),
        ("/v1/completions", "GET", 405),
        ("/", "GET", 405),
        ("/v1/models", "DELETE", 405),
        ("/v1/models/other", "GET", 404),
        ("/v1/completions", "POST", 400),
    ],
)
def test_every_wrong_turn_has_openais_error_shape(path, method, status):
    got, head, content, _ = asyncio.run(ask(layer(), path, method))
    assert got == status
    assert set(json.loads(content)["error"]) == {"message", "type", "param", "code"}
    assert ("allow" in head) is (status == 405)


def test_made_up_paths_and_models_make_no_series():
    app = layer()

    async def main():
        for i in range(30):
            await ask(app, f"/made/up/{i}", "GET")
            body = json.dumps({"model": f"made-up-{i}", "prompt": "x"}).encode()
            status, *_ = await ask(app, "/v1/completions", body=[body])
            assert status == 404

    asyncio.run(main())
    samples = [s for f in app.gateway.metrics.registry.collect() for s in f.samples]
    series = {
        (s.labels["model"], s.labels["endpoint"], s.labels["status"])
        for s in samples
        if s.name == "llm_requests_total"
    }
    assert series == {("unknown", "other", "404"), ("unknown", "/v1/completions", "404")}


def test_before_a_version_is_loaded_the_answer_is_a_503_with_retry_after():
    app = layer()
    body = json.dumps({"model": "m", "prompt": "x"}).encode()
    for path, content in (
        ("/v1/completions", body),
        ("/", b'{"endpoint":"generate","prompt":"x"}'),
    ):
        status, head, _, _ = asyncio.run(ask(app, path, body=[content]))
        assert status == 503
        assert int(head["retry-after"]) >= 1
    status, head, content, _ = asyncio.run(ask(app, "/readyz", "GET"))
    assert (status, json.loads(content)["status"]) == (503, "not_ready")
    assert asyncio.run(ask(app, "/healthz", "GET"))[0] == 200
