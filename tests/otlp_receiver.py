"""A receiver of OTLP over HTTP, as Langfuse, LangSmith or a collector would be one.

It keeps what it is sent: the path, the headers, and the spans as protobuf says they are.
"""

import gzip
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

WAIT_S = 30


@dataclass(frozen=True)
class Span:
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: str
    status: str
    message: str
    start_ns: int
    end_ns: int
    attributes: dict
    resource: dict
    scope: tuple


class Receiver:
    """Use it in a ``with`` block.

    Attributes:
        url: Its base URL.
        requests: (path, headers in lower case) of every POST.
        answer: Called for every POST; returns status, headers and body.
    """

    def __init__(self):
        self.requests = []
        self.spans = []
        self.answer = lambda: (200, {"content-type": "application/x-protobuf"}, b"")
        self._changed = threading.Condition()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                status, headers, content = receiver.take(self.path, self.headers, body)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    def take(self, path, headers, body):
        if headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        status, given, content = self.answer()
        with self._changed:
            self.requests.append((path, {name.lower(): value for name, value in headers.items()}))
            if status == 200:
                self.spans += _spans(ExportTraceServiceRequest.FromString(body))
            self._changed.notify_all()
        return status, given, content

    def wait(self, num_spans=1, num_requests=1):
        """Wait until so much has come; returns the spans."""
        end_s = time.monotonic() + WAIT_S
        with self._changed:
            while len(self.spans) < num_spans or len(self.requests) < num_requests:
                left_s = end_s - time.monotonic()
                assert left_s > 0, f"{len(self.spans)} spans, {len(self.requests)} requests"
                self._changed.wait(left_s)
            return list(self.spans)


def _spans(request):
    for resource in request.resource_spans:
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield Span(
                    name=span.name,
                    trace_id=span.trace_id.hex(),
                    span_id=span.span_id.hex(),
                    parent_id=span.parent_span_id.hex(),
                    kind=span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
                    status=span.status.StatusCode.Name(span.status.code).removeprefix(
                        "STATUS_CODE_"
                    ),
                    message=span.status.message,
                    start_ns=span.start_time_unix_nano,
                    end_ns=span.end_time_unix_nano,
                    attributes=_values(span.attributes),
                    resource=_values(resource.resource.attributes),
                    scope=(scope.scope.name, scope.scope.version, scope.schema_url),
                )


def _values(pairs):
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value):
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(one) for one in value.array_value.values]
    return getattr(value, kind)
