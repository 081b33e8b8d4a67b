"""The part of Schema Registry's REST API that its client uses, in a thread of this process.

Follows https://docs.confluent.io/platform/current/schema-registry/develop/api.html:
schemas have an id of their own wherever they are registered, subjects have versions.
"""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Registry:
    """A registry with nothing in it; ``close()`` ends it."""

    def __init__(self, password: str = "") -> None:
        self.schemas: list[dict] = []
        self.subjects: dict[str, list[int]] = {}
        self.status = 0
        self.asked: list[str] = []
        self._auth = base64.b64encode(password.encode()).decode() if password else ""
        registry = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                registry.answer(self, None)

            def do_POST(self):
                length = int(self.headers["Content-Length"])
                registry.answer(self, json.loads(self.rfile.read(length)))

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, request, body) -> None:
        """Answer one request."""
        self.asked.append(f"{request.command} {request.path}")
        status, found = self._find(request.path.partition("?")[0].split("/")[1:], body)
        if self._auth and request.headers["Authorization"] != f"Basic {self._auth}":
            status, found = 401, {"error_code": 401, "message": "Unauthorized"}
        if self.status:
            status, found = self.status, {"error_code": self.status, "message": "out of order"}
        text = json.dumps(found).encode()
        request.send_response(status)
        request.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
        request.send_header("Content-Length", str(len(text)))
        request.end_headers()
        request.wfile.write(text)

    def _find(self, path, body):
        match path:
            case ["schemas", "ids", id_] if 0 < int(id_) <= len(self.schemas):
                return 200, self.schemas[int(id_) - 1]
            case ["subjects", subject, "versions"] if body is not None:
                return 200, {"id": self._register(subject, body)}
            case ["subjects", subject] if body is not None:
                for version, id_ in enumerate(self.subjects.get(subject, []), 1):
                    if self.schemas[id_ - 1]["schema"] == body["schema"]:
                        return 200, self._registered(subject, version, id_)
            case ["subjects", subject, "versions", version] if subject in self.subjects:
                ids = self.subjects[subject]
                number = len(ids) if version == "latest" else int(version)
                return 200, self._registered(subject, number, ids[number - 1])
        return 404, {"error_code": 40403, "message": "Schema not found"}

    def _register(self, subject, body):
        schema = {"schemaType": "AVRO", **body}
        if schema not in self.schemas:
            self.schemas.append(schema)
        id_ = self.schemas.index(schema) + 1
        ids = self.subjects.setdefault(subject, [])
        if id_ not in ids:
            ids.append(id_)
        return id_

    def _registered(self, subject, version, id_):
        return {"subject": subject, "version": version, "id": id_, **self.schemas[id_ - 1]}
