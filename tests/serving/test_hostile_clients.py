"""Clients that do not play by the rules; meanwhile others are served."""

import contextlib
import json
import socket
import threading
import time

import httpx
import psutil
import pytest
from doubles import wait_until

from penstock.serving import connections, exchange


def address(server):
    host, port = server.url.removeprefix("http://").split(":")
    return host, int(port)


def served(server):
    body = {"model": "penny", "prompt": "say hello"}
    answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=20)
    return answer.json()["choices"][0]["text"] == "hello"


def talk(server, data, timeout_s=10):
    """Send bytes; returns everything that comes back until the server closes."""
    with socket.create_connection(address(server), timeout=timeout_s) as client:
        with contextlib.suppress(ConnectionError):
            client.sendall(data)
        received = b""
        with contextlib.suppress(ConnectionError, TimeoutError):
            while piece := client.recv(65_536):
                received += piece
    return received


def connected_to(server):
    """The clients whose connections the server, in this process, holds open."""
    _, port = address(server)
    held = psutil.Process().net_connections("tcp")
    return {tuple(one.raddr) for one in held if one.laddr.port == port and one.raddr}


def error_of(received):
    return json.loads(received.partition(b"\r\n\r\n")[2])["error"]


@pytest.mark.slow
def test_thousands_of_idle_connections_keep_nobody_out(gateway):
    server = gateway()
    with contextlib.ExitStack() as stack:
        for _ in range(9_000):
            stack.enter_context(socket.create_connection(address(server)))
        assert served(server)
    assert served(server)


@pytest.mark.parametrize("begin", [b"", b"GET / HT", b"POST / HTTP/1.1\r\nhost: x\r\n"])
def test_a_head_that_does_not_end_is_not_waited_for(gateway, monkeypatch, begin):
    monkeypatch.setattr(connections, "HEAD_TIMEOUT_S", 0.2)
    received = talk(gateway(), begin)
    assert received.startswith(b"HTTP/1.1 408 ")
    assert error_of(received)["code"] == "timeout"


@pytest.mark.slow
def test_a_head_sent_byte_by_byte_is_not_waited_for(gateway, monkeypatch):
    monkeypatch.setattr(connections, "HEAD_TIMEOUT_S", 0.3)
    server = gateway()
    with socket.create_connection(address(server), timeout=10) as client:
        with contextlib.suppress(ConnectionError):
            for byte in b"POST /v1/completions HTTP/1.1\r\nhost: " + b"x" * 1_000:
                client.sendall(bytes([byte]))
                time.sleep(0.01)
        with contextlib.suppress(ConnectionError):
            assert b"408" in client.recv(1_000)
    assert served(server)


@pytest.mark.slow
def test_a_second_request_may_come_late_on_a_connection_that_is_kept(gateway, monkeypatch):
    monkeypatch.setattr(connections, "HEAD_TIMEOUT_S", 0.1)
    server = gateway()
    with httpx.Client(timeout=10) as client:
        first = client.get(f"{server.url}/healthz")
        time.sleep(0.4)
        second = client.get(f"{server.url}/healthz")
    assert (first.status_code, second.status_code) == (200, 200)


def test_giant_headers_are_refused(gateway):
    server = gateway()
    received = talk(server, b"GET /healthz HTTP/1.1\r\nx: " + b"a" * 5_000_000)
    assert received.startswith(b"HTTP/1.1 431 ")
    assert error_of(received)["code"] == "headers_too_large"
    many = b"".join(b"x%d: y\r\n" % number for number in range(100_000))
    assert talk(server, b"GET /healthz HTTP/1.1\r\n" + many).startswith(b"HTTP/1.1 431 ")
    assert served(server)


def test_a_large_body_in_one_piece_with_its_head_is_no_giant_head(gateway):
    body = json.dumps({"model": "penny", "prompt": "x" * 200_000}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
    received = talk(gateway(), head + b"content-length: %d\r\n\r\n" % len(body) + body)
    assert error_of(received)["code"] == "context_length_exceeded"


@pytest.mark.parametrize("sent", [b"\x16\x03\x01\x02\x00\x01\x00", b"hello\r\n\r\n", b"\0" * 500])
def test_what_is_not_http_is_told_so(gateway, sent):
    received = talk(gateway(), sent)
    assert received.startswith(b"HTTP/1.1 400 ")
    assert error_of(received)["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b'{"model": "penny", "prompt": "\xff\xfe"}',
        b'{"model": "penny", "prompt": "\\ud800"}',
        b'{"model": "penny", "prompt": "x", "max_tokens": 1e400}',
        b'{"model": "penny", "model": "vectors", "prompt": "x"',
        b'{"model": "../../etc/passwd", "prompt": "x"}',
        b'{"model": "penny\\u0000", "prompt": "x"}',
    ],
    ids=["deep list", "deep object", "no UTF-8", "surrogate", "infinite", "half", "path", "NUL"],
)
def test_hostile_json_is_a_clients_mistake(gateway, body):
    server = gateway()
    answer = httpx.post(f"{server.url}/v1/completions", content=body, timeout=20)
    assert answer.status_code in (400, 404), answer.text
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert served(server)


@pytest.mark.slow
def test_a_prompt_of_a_megabyte_is_refused_and_others_go_on(gateway):
    server = gateway(max_body_bytes=2**21)
    body = {"model": "penny", "prompt": "word " * 200_000}
    answers = []
    asking = [
        threading.Thread(
            target=lambda: answers.append(
                httpx.post(f"{server.url}/v1/completions", json=body, timeout=60).status_code
            )
        )
        for _ in range(2)
    ]
    for thread in asking:
        thread.start()
    assert served(server)
    for thread in asking:
        thread.join()
    assert answers == [400] * 2


@pytest.mark.slow
def test_a_stream_that_nobody_reads_is_ended_and_its_slot_freed(gateway, events, monkeypatch):
    monkeypatch.setattr(exchange, "_LAST_WORDS_S", 0.2)
    server = gateway(request_timeout_s=3.0, max_concurrency=1)
    body = json.dumps({"model": "penny", "prompt": "flood", "stream": True}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\n"
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        client.connect(address(server))
        client.sendall(head + b"content-length: %d\r\n\r\n" % len(body) + body)
        wait_until(lambda: events["started"] == 1)
        assert client.getsockname() in connected_to(server)
        wait_until(lambda: events["ended"] == 1)
        assert served(server)
        # The kernel may go on delivering what was on its way; the server has let go of it.
        mine = client.getsockname()
        wait_until(lambda: mine not in connected_to(server))


def test_forged_identity_in_a_request_is_neither_believed_nor_repeated(gateway):
    server = gateway()
    forged = {
        "x-penstock-model": "other",
        "x-penstock-model-version": "99",
        "x-penstock-run": "forged",
        "x-penstock-data-version": "forged",
    }
    body = {"model": "penny", "prompt": "say hello"}
    answer = httpx.post(f"{server.url}/v1/completions", json=body, headers=forged)
    shown = [value for name, value in answer.headers.multi_items() if name.startswith("x-penstock")]
    assert shown == ["penny", "1", "run-1", "data-1"]
    lost = httpx.post(f"{server.url}/v1/completions", json={}, headers=forged)
    assert not [name for name in lost.headers if name.startswith("x-penstock")]
