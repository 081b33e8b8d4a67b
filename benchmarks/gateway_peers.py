"""What a gateway adds: Penstock, LiteLLM's proxy and a bare FastAPI app before one server.

``python -m benchmarks.gateway_peers [--rounds N] [--requests N]`` starts a stub of an
OpenAI-compatible server that answers at once, and the three before it, each in a process of
its own (LiteLLM in an environment of its own, scripts/make-env.sh litellm). A client in this
process asks all of them in turn, also the stub itself. Added latency is the difference to
the stub's own, in the same round; requests per core are requests per second of the process's
processor time. Then 100 clients, who start one after another within a second, or all in the
same instant, and read three streams of 50 tokens each: the added time to the first token, and
the share of the stub's own tokens per second. Medians over rounds, as Markdown.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from benchmarks.machine import machine

HOME = Path(__file__).resolve().parent.parent
STUB, OURS, LITELLM, BARE = "stub, asked directly", "Penstock", "LiteLLM proxy", "bare FastAPI"
CONCURRENCY = 16
NUM_STREAMS, STREAMS_EACH, STREAM_TOKENS, TOKEN_S = 100, 3, 50, 0.02
MODEL = "m"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--be", nargs=3, metavar=("WHICH", "PORT", "STUB_PORT"))
    options = parser.parse_args()
    if options.be:
        which, port, stub = options.be
        SERVERS[which](int(port), int(stub))
        return
    subprocess.run([str(HOME / "scripts" / "make-env.sh"), "litellm"], check=True)
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), options.rounds, options.requests)


def measure(folder: Path, rounds: int, num_requests: int) -> None:
    """Start all, ask them in turn, print the tables."""
    from benchmarks.gateway import free_port

    ports = {name: free_port() for name in (STUB, OURS, LITELLM, BARE)}
    started = {}
    try:
        for name, port in ports.items():
            started[name] = start(name, port, ports[STUB], folder)
            wait(port)
        print(f"{machine()}; {rounds} rounds\n")
        print_latencies(ports, started, rounds, num_requests)
        for spread_s in (STREAM_TOKENS * TOKEN_S, 0.0):
            print_streams(ports, rounds, spread_s)
    finally:
        for process in started.values():
            process.kill()
            process.wait()


def start(name: str, port: int, stub: int, folder: Path) -> subprocess.Popen[bytes]:
    """Start one of the four."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    if name != LITELLM:
        command = [sys.executable, "-m", "benchmarks.gateway_peers", "--be", name]
        return subprocess.Popen([*command, str(port), str(stub)], cwd=HOME, **quiet)
    config = folder / "litellm.json"  # JSON is YAML
    config.write_text(
        json.dumps(
            {
                "model_list": [
                    {
                        "model_name": MODEL,
                        "litellm_params": {
                            "model": f"openai/{MODEL}",
                            "api_base": f"http://127.0.0.1:{stub}/v1",
                            "api_key": "none",
                        },
                    }
                ],
                "litellm_settings": {"telemetry": False},
            }
        )
    )
    program = str(HOME / ".venvs" / "litellm" / "bin" / "litellm")
    command = [program, "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
    return subprocess.Popen(command, env=environment, **quiet)


def print_latencies(
    ports: dict[str, int], started: dict[str, subprocess.Popen[bytes]], rounds: int, count: int
) -> None:
    """One request after the other, then sixteen at once."""
    print("| at once | | added p50 ms | added p99 ms | requests/s | requests/s and core |")
    print("|---|---|---|---|---|---|")
    for concurrency in (1, CONCURRENCY):
        readings: dict[str, list[tuple[float, float, float, float]]] = {name: [] for name in ports}
        for number in range(rounds + 1):
            for name, port in ports.items():
                process = psutil.Process(started[name].pid)
                reading = whole_answers(port, concurrency, count, lambda p=process: busy_s(p))
                if number:  # the first round warms up
                    readings[name].append(reading)
        for name, taken in readings.items():
            added = [
                statistics.median(
                    one[column] - direct[column]
                    for one, direct in zip(taken, readings[STUB], strict=True)
                )
                for column in (0, 1)
            ]
            rate, per_core = (statistics.median(one[column] for one in taken) for column in (2, 3))
            shown = ["", ""] if name == STUB else [f"{one:.2f}" for one in added]
            print(f"| {concurrency} | {name} | {' | '.join(shown)} | {rate:.0f} | {per_core:.0f} |")


def busy_s(process: psutil.Process) -> float:
    """Processor seconds of a process and those it started."""
    return sum(sum(one.cpu_times()[:2]) for one in (process, *process.children(recursive=True)))


def whole_answers(
    port: int, concurrency: int, count: int, busy: Callable[[], float]
) -> tuple[float, float, float, float]:
    """Latency p50 and p99 in ms, requests per second, and per second of processor time."""
    latencies_ms: list[float] = []
    used_s, began_s = busy(), time.perf_counter()
    asyncio.run(_all(port, concurrency, count // concurrency, latencies_ms))
    elapsed_s, used_s = time.perf_counter() - began_s, busy() - used_s
    cuts = statistics.quantiles(latencies_ms, n=100)
    return cuts[49], cuts[98], len(latencies_ms) / elapsed_s, len(latencies_ms) / used_s


async def _all(port: int, concurrency: int, share: int, latencies_ms: list[float]) -> None:
    await asyncio.gather(*(_one_client(port, share, latencies_ms) for _ in range(concurrency)))


async def _one_client(port: int, count: int, latencies_ms: list[float]) -> None:
    """Requests over one connection, by plain sockets: a library would take longer."""
    request = as_http({"messages": [{"role": "user", "content": "hello " * 20}], "max_tokens": 8})
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in range(count):
        began_s = time.perf_counter()
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        if not head.startswith(b"http/1.1 200"):
            raise RuntimeError(f"The server answered {head[:200]!r}.")
        if b"content-length:" in head:
            length = head.split(b"content-length:")[1].split(b"\r\n")[0]
            await reader.readexactly(int(length))
        else:
            await reader.readuntil(b"0\r\n\r\n")
        latencies_ms.append(1_000 * (time.perf_counter() - began_s))
    writer.close()


def as_http(fields: dict[str, Any]) -> bytes:
    """A chat request's bytes."""
    body = json.dumps({"model": MODEL, "temperature": 0, **fields}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n"
    return f"{head}content-type: application/json\r\n\r\n".encode() + body


def print_streams(ports: dict[str, int], rounds: int, spread_s: float) -> None:
    """A hundred streams at once, whose clients start within ``spread_s`` seconds."""
    readings: dict[str, list[tuple[float, float]]] = {name: [] for name in ports}
    for number in range(rounds + 1):
        for name, port in ports.items():
            reading = asyncio.run(_streams(port, spread_s))
            if number:
                readings[name].append(reading)
    print(f"\n| {NUM_STREAMS} streams, begun within {spread_s:g} s | added TTFT p50 ms | tokens/s "
          "beside the stub's own |\n|---|---|---|")  # fmt: skip
    for name, taken in readings.items():
        pairs = list(zip(taken, readings[STUB], strict=True))
        added = statistics.median(one[0] - direct[0] for one, direct in pairs)
        share = statistics.median(one[1] / direct[1] for one, direct in pairs)
        print(f"| {name} | {'' if name == STUB else f'{added:.1f}'} | {share:.1%} |")


async def _streams(port: int, spread_s: float) -> tuple[float, float]:
    """Median time to the first token in ms, and tokens per second of all streams."""
    began_s = time.perf_counter()
    waits_s = [number * spread_s / NUM_STREAMS for number in range(NUM_STREAMS)]
    clients = [_streams_of_one(port, wait_s) for wait_s in waits_s]
    found = [one for ones in await asyncio.gather(*clients) for one in ones]
    tokens = sum(count for _, count in found)
    rate = tokens / (time.perf_counter() - began_s)
    return statistics.median(first_ms for first_ms, _ in found), rate


async def _streams_of_one(port: int, wait_s: float) -> list[tuple[float, int]]:
    await asyncio.sleep(wait_s)
    return [await _stream(port) for _ in range(STREAMS_EACH)]


async def _stream(port: int) -> tuple[float, int]:
    request = as_http({"messages": [{"role": "user", "content": "hi"}], "stream": True})
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    began_s = time.perf_counter()
    writer.write(request)
    first_ms, count = 0.0, 0
    async for line in reader:
        if b'"content"' in line and b"token" in line:
            first_ms = first_ms or 1_000 * (time.perf_counter() - began_s)
            count += 1
        if b"[DONE]" in line:
            break
    writer.close()
    if count != STREAM_TOKENS:
        raise RuntimeError(f"A stream had {count} tokens.")
    return first_ms, count


def wait(port: int) -> None:
    """Wait until a server answers."""
    for _ in range(600):
        try:
            asyncio.run(_one_client(port, 1, []))
        except (OSError, RuntimeError, asyncio.IncompleteReadError):
            time.sleep(0.2)
        else:
            return
    raise RuntimeError(f"Nobody answers on port {port}.")


# -- the servers ---------------------------------------------------------------


def be_stub(port: int, _: int) -> None:
    """A server that answers at once, or a token every ``TOKEN_S`` seconds."""
    import uvicorn

    usage = {"prompt_tokens": 20, "completion_tokens": 8, "total_tokens": 28}

    def event(delta: dict[str, str], reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        body = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": MODEL}
        return b"data: " + json.dumps({**body, "choices": [choice]}).encode() + b"\n\n"

    def whole() -> bytes:
        message = {"role": "assistant", "content": "hello"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        body = {"id": "c", "object": "chat.completion", "created": 1, "model": MODEL}
        return json.dumps({**body, "choices": [choice], "usage": usage}).encode()

    at_once = event({"role": "assistant", "content": "hello"}) + event({}, "stop")
    last = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": MODEL}
    counted = json.dumps({**last, "choices": [], "usage": usage}).encode()
    done = b"data: " + counted + b"\n\ndata: [DONE]\n\n"
    answer = whole()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        asked = json.loads(body or b"{}")
        kind = b"text/event-stream" if asked.get("stream") else b"application/json"
        headers = [(b"content-type", kind)]
        if not asked.get("stream"):
            headers.append((b"content-length", str(len(answer)).encode()))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        if not asked.get("stream"):
            await send({"type": "http.response.body", "body": answer})
            return
        if asked.get("max_tokens"):
            await send({"type": "http.response.body", "body": at_once + done})
            return
        for _ in range(STREAM_TOKENS):
            piece = event({"content": "token "})
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            await asyncio.sleep(TOKEN_S)
        await send({"type": "http.response.body", "body": event({}, "stop") + done})

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error", access_log=False)


def be_ours(port: int, stub: int) -> None:
    """Penstock's gateway, as ``penstock serve`` starts it."""
    from penstock.serve_section import Serve
    from penstock.serving.gateway import Surroundings
    from penstock.serving.routes import Targets
    from penstock.serving.server import serve

    class Nothing:
        def targets(self, name: str) -> Targets:
            return Targets()

    backend = {"openai": {"url": f"http://127.0.0.1:{stub}/v1"}}
    models = {MODEL: {"source": MODEL, "backend": backend, "max_concurrency": 200}}
    config = Serve.model_validate({"port": port, "metrics_port": 0, "models": models})
    with tempfile.TemporaryDirectory() as cache:
        serve(config, Surroundings(Nothing(), Path(cache)))


def be_bare(port: int, stub: int) -> None:
    """What one would write in ten minutes: pass everything on."""
    import httpx
    import uvicorn
    from fastapi import FastAPI, Request
    from fastapi.responses import Response, StreamingResponse

    app = FastAPI()
    limits = httpx.Limits(max_connections=200, max_keepalive_connections=200)
    client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{stub}", limits=limits)

    async def passed_on(request: Request) -> Response:
        asked = await request.json()
        upstream = client.build_request("POST", "/v1/chat/completions", json=asked)
        answer = await client.send(upstream, stream=bool(asked.get("stream")))
        if asked.get("stream"):
            return StreamingResponse(answer.aiter_raw(), media_type="text/event-stream")
        return Response(answer.content, media_type="application/json")

    # FastAPI resolves annotations in the module, where a local import is not.
    passed_on.__annotations__ = {"request": Request}
    app.post("/v1/chat/completions", response_model=None)(passed_on)
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error", access_log=False)


SERVERS = {STUB: be_stub, OURS: be_ours, BARE: be_bare}

if __name__ == "__main__":
    main()
