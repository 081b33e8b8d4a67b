"""Langfuse and LangSmith, as far as their documentation says what becomes of a score.

They were not at hand. What is refused here is what is documented as wrong: another path,
another key, fields that are not there, values of another type.
"""

import base64
import json
import threading
import uuid
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

KEYS = {
    "LANGFUSE_PUBLIC_KEY": "pk-lf-public",
    "LANGFUSE_SECRET_KEY": "sk-lf-secret",
    "LANGSMITH_API_KEY": "lsv2-secret",
}
SESSION = "6f1c2f5e-8a53-4f0e-9d0e-0c7b8a3f1d2e"
_BASIC = "Basic " + base64.b64encode(b"pk-lf-public:sk-lf-secret").decode()
_LANGFUSE_FIELDS = {"id", "traceId", "name", "value", "dataType", "comment", "timestamp"} | {
    "metadata",
    "environment",
    "observationId",
    "sessionId",
}
_LANGSMITH_FIELDS = {"id", "run_id", "trace_id", "session_id", "key", "score", "value"} | {
    "comment",
    "correction",
    "feedback_source",
    "created_at",
    "modified_at",
    "extend_trace_retention",
}


class ScoreTools:
    """Use it in a ``with`` block.

    Attributes:
        url: Base URL of both.
        requests: (method, path, body) of all calls.
        scores: What Langfuse shows: by id, name and day.
        feedback: What LangSmith shows, by id.
        runs: Ids of LangSmith's runs; None is all there could be.
        projects: LangSmith's.
        known_again: What LangSmith answers to feedback it has: 409, or 200 and keeps the old.
        answer: Called before each call is looked at; a status or None to go on.
    """

    def __init__(self):
        self.requests, self.scores, self.feedback = [], {}, {}
        self.runs, self.projects = None, {"default": SESSION}
        self.known_again = 409
        self.answer = lambda number: None
        tools = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _take(self):
                length = int(self.headers.get("content-length") or 0)
                raw = self.rfile.read(length)
                status, said = tools.take(self.command, self.path, self.headers, raw)
                content = json.dumps(said).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PATCH = _take

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

    def take(self, method, path, headers, raw):
        place, body = urlsplit(path), json.loads(raw) if raw else None
        self.requests.append((method, place.path, body))
        if (status := self.answer(len(self.requests))) is not None:
            return status, {"detail": "as the test says"}
        if place.path == "/api/public/scores":
            return self._langfuse(method, headers, body)
        if place.path == "/info":
            return 200, {}
        if headers.get("x-api-key") != KEYS["LANGSMITH_API_KEY"]:
            return 401, {"detail": "Invalid token"}
        if place.path == "/sessions":
            name = parse_qs(place.query)["name"][0]
            return 200, [{"id": self.projects[name]}] if name in self.projects else []
        return self._langsmith(method, place.path, body)

    def _langfuse(self, method, headers, body):
        if headers.get("authorization") != _BASIC:
            return 401, {"message": "Invalid credentials"}
        if method != "POST":
            return 405, {}
        if problem := _langfuse_problem(body):
            return 400, {"message": problem}
        day = datetime.fromisoformat(body["timestamp"]).date()
        self.scores[body["id"], body["name"], day] = body
        return 200, {"id": body["id"]}

    def _langsmith(self, method, path, body):
        _, _, name = path.removeprefix("/feedback").partition("/")
        if not path.startswith("/feedback") or method not in ("POST", "PATCH"):
            return 404, {"detail": "Not Found"}
        if set(body) - _LANGSMITH_FIELDS or _num_decimals(body.get("score")) > 4:
            return 422, {"detail": "wrong"}
        if method == "PATCH":
            if name not in self.feedback:
                return 404, {"detail": "Feedback not found"}
            self.feedback[name] |= body
            return 200, self.feedback[name]
        if body["session_id"] != SESSION or not uuid.UUID(body["id"]):
            return 422, {"detail": "wrong"}
        if self.runs is not None and body["run_id"] not in self.runs:
            return 404, {"detail": "Run not found"}
        if body["id"] in self.feedback:
            return self.known_again, self.feedback[body["id"]]
        self.feedback[body["id"]] = body
        return 200, body


def _langfuse_problem(body):
    if set(body) - _LANGFUSE_FIELDS:
        return f"unknown: {set(body) - _LANGFUSE_FIELDS}"
    if datetime.fromisoformat(body["timestamp"]).tzinfo is None:
        return "timestamp without an offset"
    value, kind = body["value"], body["dataType"]
    fits = {
        "NUMERIC": isinstance(value, float | int),
        "BOOLEAN": value in (0, 1),
        "CATEGORICAL": isinstance(value, str) and value,
    }
    return None if fits[kind] else f"{value!r} is not {kind}"


def _num_decimals(value):
    return len(repr(float(value or 0)).partition(".")[2])
