"""A real HTTP API on this machine, with rows to page through and bad days to order."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit


class Api:
    """What the server has, and what it has been asked.

    Attributes:
        rows: Its rows, in order.
        page_size: Rows a page.
        requests: Path and parameters of each request.
        headers: Of each request.
        bodies: Of each request that had one.
        faults: Taken one a request before it is answered: a function of the handler that
            answers it in another way, or None.
    """

    def __init__(self):
        self.rows = []
        self.page_size = 100
        self.requests = []
        self.headers = []
        self.bodies = []
        self.faults = []
        self.url = ""

    def page(self, handler, query):
        """``{"data": [...], "next": URL or null}``, also by number or offset, from ``since`` on."""
        rows = [r for r in self.rows if str(r.get("at", "")) >= query.get("since", "")]
        if "number" in query:
            start = (int(query["number"]) - 1) * self.page_size
        else:
            start = int(query.get("offset", 0))
        page = rows[start : start + self.page_size]
        more = start + self.page_size < len(rows)
        since = f"&since={query['since']}" if "since" in query else ""
        link = f"{self.url}/rows?offset={start + self.page_size}{since}"
        send_json(handler, {"data": page, "next": link if more else None, "total": len(rows)})


def send(handler, status, body, headers=(), length=None):
    """Answer with these bytes; ``length`` may promise more than there are."""
    handler.send_response(status)
    for name, value in headers:
        handler.send_header(name, value)
    handler.send_header("Content-Length", str(len(body) if length is None else length))
    handler.end_headers()
    handler.wfile.write(body)


def send_json(handler, value, status=200, headers=()):
    send(
        handler,
        status,
        json.dumps(value).encode(),
        [("Content-Type", "application/json"), *headers],
    )


def status(code, *headers, body=b"oops"):
    """A fault: this status."""
    return lambda handler: send(handler, code, body, headers)


def html(handler):
    send(handler, 200, b"<html><h1>Please log in</h1></html>", [("Content-Type", "text/html")])


def half_json(handler):
    send(handler, 200, b'{"data": [{"id": 1, "te', [("Content-Type", "application/json")])


def dies_in_mid_page(handler):
    """Promise more bytes than are sent, and hang up."""
    send(handler, 200, b'{"data": [{"id": 1', length=10_000)
    handler.close_connection = True


def hangs_up(handler):
    handler.close_connection = True


@contextmanager
def serving(api=None, answer=None):
    """Serve ``api`` on a free port; ``answer(handler, query)`` takes the place of its pages."""
    api = api or Api()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            parts = urlsplit(self.path)
            query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
            api.requests.append((parts.path, query))
            api.headers.append(dict(self.headers))
            fault = api.faults.pop(0) if api.faults else None
            if fault is not None:
                fault(self)
            else:
                (answer or api.page)(self, query)

        def do_POST(self):
            api.bodies.append(self.rfile.read(int(self.headers.get("Content-Length", 0))))
            self.do_GET()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    api.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield api
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
