"""The gateway against a bare FastAPI app with the same backend: latency and requests per second.

Both run as processes of their own with the same tiny model, and answer
``POST /v1/completions`` without streaming. The bare app does nothing but parse,
tokenise, generate and answer: no limits, no queue, no metrics, no lineage, no
cancellation. The client speaks HTTP over plain sockets, because a client
library would take longer than the servers. Rounds alternate between the two;
figures are medians over rounds.

    python -m benchmarks.gateway
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.generation import describe, save_llama_6m

PROMPT = "word1 word22 word333"


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--tokens", type=int, default=1)
    parser.add_argument("--serve", nargs=3, metavar=("WHICH", "FOLDER", "PORT"))
    options = parser.parse_args()
    if options.serve:
        serve(*options.serve)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        save_llama_6m(folder)
        measure(folder, options)


def measure(folder: Path, options: argparse.Namespace) -> None:
    """Start both servers, take turns, print the table."""
    ports = {which: free_port() for which in ("gateway", "bare")}
    servers = []
    try:
        for which, port in ports.items():  # one after the other: both convert the model
            servers.append(start(which, folder, port))
            wait_ready(port, options.tokens)
        print(f"{describe()}; {options.rounds} rounds of {options.requests} requests, "
              f"{options.tokens} tokens each\n")  # fmt: skip
        print("| at once | | p50 ms | p99 ms | requests/s | ratio of requests/s (median) |")
        print("|---|---|---|---|---|---|")
        for concurrency in (1, 16):
            print_rows(ports, concurrency, options)
    finally:
        for server in servers:
            server.terminate()
            server.wait()


def start(which: str, folder: Path, port: int) -> subprocess.Popen[bytes]:
    """Start this file as a server."""
    command = [sys.executable, "-m", "benchmarks.gateway", "--serve", which, str(folder), str(port)]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


def print_rows(ports: dict[str, int], concurrency: int, options: argparse.Namespace) -> None:
    """Both servers' rows for one concurrency."""
    readings: dict[str, list[tuple[float, float, float]]] = {which: [] for which in ports}
    for number in range(options.rounds + 1):
        for which, port in ports.items():
            reading = asyncio.run(load(port, concurrency, options.requests, options.tokens))
            if number:  # the first round warms up
                readings[which].append(reading)
    pairs = zip(readings["gateway"], readings["bare"], strict=True)
    ratio = statistics.median(ours[2] / bare[2] for ours, bare in pairs)
    for which, taken in readings.items():
        p50, p99, rate = (statistics.median(column) for column in zip(*taken, strict=True))
        shown = f"{ratio:.2f}" if which == "gateway" else ""
        print(
            f"| {concurrency} | {which} | {p50:.2f} | {p99:.2f} | {rate:.0f} | {shown} |",
            flush=True,
        )


async def load(port: int, concurrency: int, num_requests: int, tokens: int):
    """Latencies p50 and p99 in ms, and requests per second."""
    latencies_ms: list[float] = []
    started_s = time.perf_counter()
    share = num_requests // concurrency
    await asyncio.gather(*(client(port, share, tokens, latencies_ms) for _ in range(concurrency)))
    elapsed_s = time.perf_counter() - started_s
    cuts = statistics.quantiles(latencies_ms, n=100)
    return cuts[49], cuts[98], len(latencies_ms) / elapsed_s


async def client(port: int, num_requests: int, tokens: int, latencies_ms: list[float]) -> None:
    """Requests one after the other over one connection."""
    request = as_http(tokens)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in range(num_requests):
        started_s = time.perf_counter()
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"The server answered {head[:200]!r}.")
        length = head.lower().split(b"content-length:")[1].split(b"\r\n")[0]
        await reader.readexactly(int(length))
        latencies_ms.append(1_000 * (time.perf_counter() - started_s))
    writer.close()


def as_http(tokens: int) -> bytes:
    """The request's bytes."""
    content = {"model": "m", "prompt": PROMPT, "max_tokens": tokens, "temperature": 0}
    body = json.dumps(content).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n"
    return f"{head}content-type: application/json\r\n\r\n".encode() + body


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def wait_ready(port: int, tokens: int) -> None:
    """Wait until the server answers."""
    for _ in range(600):
        try:
            asyncio.run(client(port, 1, tokens, []))
        except (OSError, RuntimeError, asyncio.IncompleteReadError):
            time.sleep(0.2)
        else:
            return
    raise RuntimeError("The server did not get ready.")


def serve(which: str, folder: str, port: str) -> None:
    """Be one of the two servers."""
    if which == "gateway":
        serve_gateway(Path(folder), int(port))
    else:
        serve_bare(Path(folder), int(port))


def serve_gateway(folder: Path, port: int) -> None:
    """Penstock's gateway."""
    from penstock.serve_section import Serve
    from penstock.serving.gateway import Surroundings
    from penstock.serving.routes import ServedVersion, Targets
    from penstock.serving.server import serve as serve_forever

    class Fixed:
        def targets(self, name: str) -> Targets:
            return Targets(ServedVersion(name, 1, 1, folder, "ab" * 32, "run", "data"))

    config = Serve.model_validate({"models": {"m": {}}, "port": port, "metrics_port": 0})
    serve_forever(config.completed("m"), Surroundings(Fixed(), folder.parent / "cache"))


def serve_bare(folder: Path, port: int) -> None:
    """What one would write in ten minutes."""
    import uvicorn
    from fastapi import FastAPI
    from pydantic import BaseModel

    from penstock.serving.backends.base import Generation, ModelFiles
    from penstock.serving.backends.ctranslate2 import CTranslate2Backend

    files = ModelFiles(folder, folder.parent / "cache" / ("ab" * 32))
    backend = CTranslate2Backend(files)
    backend.load()
    app = FastAPI()

    class Asked(BaseModel):
        model: str
        prompt: str
        max_tokens: int
        temperature: float

    async def complete(asked: Asked) -> dict[str, object]:
        prompt_ids = files.text.encode(asked.prompt)
        request = Generation(prompt_ids, asked.max_tokens, asked.temperature)
        text = "".join([chunk.text async for chunk in backend.generate(request)])
        return {"model": asked.model, "choices": [{"index": 0, "text": text}]}

    # FastAPI resolves annotations in the module, where a local class is not.
    complete.__annotations__ = {"asked": Asked, "return": dict[str, object]}
    app.post("/v1/completions")(complete)
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
