"""What a trace costs a request, and what it costs the thread that sends it.

The same four spans, told to Penstock's tracer and to OpenTelemetry's own SDK with its
batch processor, both sent to a receiver in another process. Penstock's attributes
are those of Phoenix; the SDK gets as many of the same length.

python benchmarks/traces.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.machine import machine
from penstock.monitoring.traces import Tracer
from penstock.traces_section import TracesConfig

ROUNDS = 5
# Fewer than a queue holds, so that none is dropped and all are sent.
NUM_REQUESTS = 1_500
RECEIVER = """
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()
    def log_message(self, *_): pass
server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""
TURNS = (("system", "You answer briefly."), ("user", "How do I reset the device? " * 8))
ANSWER = "Hold the button for ten seconds, then let go. " * 8

Measured = tuple[float, float]


def traced(tracer: Tracer) -> None:
    """One request as the gateway tells it."""
    trace = tracer.begin()
    trace.note(method="POST", endpoint="/v1/chat/completions", request_id="req-1")
    trace.note(session="conversation-7", tenant="acme", key_id="key-2")
    with trace.span("route"):
        trace.note(asked="support", version=3, digest="ab" * 32, run_id="r", data_version="a@3")
    trace.note(operation="chat", provider="ctranslate2", model="penny", temperature=0.2)
    with trace.span("queue") as queue:
        queue.note(queue_s=0.01, num_waiting=3)
    with trace.span("backend") as backend:
        backend.note(ttft_s=0.05)
    trace.note(response_id="chatcmpl-x", prompt_tokens=20, completion_tokens=30)
    if trace.wants_content:
        trace.prompt(TURNS)
        trace.answer(ANSWER)
    trace.end(200)


def penstock(url: str, content: bool) -> Measured:
    """Microseconds a request: on the thread that serves, and beside it."""
    config = TracesConfig(to="phoenix", endpoint=url, content=content)
    tracer = Tracer(config, environ={})
    tracer.start()
    return measured(lambda: traced(tracer), lambda: tracer.close(60))


def off(url: str) -> Measured:
    """The same without a tracer."""
    tracer = Tracer(None)
    return measured(lambda: traced(tracer), lambda: None)


def sdk(url: str) -> Measured:
    """OpenTelemetry's SDK, as one uses it."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider()
    processor = BatchSpanProcessor(
        OTLPSpanExporter(f"{url}/v1/traces"), max_queue_size=4 * NUM_REQUESTS
    )
    provider.add_span_processor(processor)
    tracer = provider.get_tracer("benchmark")
    sizes = {"gateway": 30, "route": 8, "queue": 8, "backend": 23}
    facts = {
        name: {f"penstock.fact.number_{i}": "a value such" for i in range(size)}
        for name, size in sizes.items()
    }

    def request() -> None:
        with tracer.start_as_current_span("gateway") as root:
            for name in ("route", "queue", "backend"):
                with tracer.start_as_current_span(name) as span:
                    span.set_attributes(facts[name])
            root.set_attributes(facts["gateway"])

    return measured(request, provider.shutdown)


def measured(request: Callable[[], None], finish: Callable[[], None]) -> Measured:
    """Processor time of many requests, and of what came after or beside them."""
    whole_s, own_s = time.process_time(), time.thread_time()
    for _ in range(NUM_REQUESTS):
        request()
    on_loop_s = time.thread_time() - own_s
    finish()
    beside_s = time.process_time() - whole_s - on_loop_s
    return on_loop_s / NUM_REQUESTS * 1e6, beside_s / NUM_REQUESTS * 1e6


def main() -> None:
    """Measure in interleaved rounds and print a table."""
    receiver = subprocess.Popen([sys.executable, "-c", RECEIVER], stdout=subprocess.PIPE, text=True)
    assert receiver.stdout is not None
    url = f"http://127.0.0.1:{receiver.stdout.readline().strip()}"
    ways: dict[str, Callable[[], Measured]] = {
        "off": lambda: off(url),
        "Penstock": lambda: penstock(url, content=False),
        "Penstock, with redacted content": lambda: penstock(url, content=True),
        "OpenTelemetry's SDK": lambda: sdk(url),
    }
    try:
        for way in ways.values():  # imports
            way()
        rounds = [{name: way() for name, way in ways.items()} for _ in range(ROUNDS)]
    finally:
        receiver.kill()
    print(machine())
    print("\n| traces | µs a request, where it is served | µs in the thread that sends |")
    print("|---|---|---|")
    for name in ways:
        here, beside = (statistics.median(one[name][i] for one in rounds) for i in (0, 1))
        print(f"| {name} | {here:.0f} | {beside:.0f} |")


if __name__ == "__main__":
    main()
