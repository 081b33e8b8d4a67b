"""A Hugging Face hub with one model, ``team/base``, at one commit."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def hub_server(folder):
    """Serve the files that are in ``folder`` when they are asked for.

    Yields:
        The URL, and a list of the paths that were asked for.
    """
    asked = []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.answer(body=False)

        def do_GET(self):
            self.answer(body=True)

        def answer(self, body):
            path = self.path.partition("?")[0]
            asked.append(path)
            files = {
                file.relative_to(folder).as_posix(): file
                for file in sorted(folder.rglob("*"))
                if file.is_file()
            }
            if path == f"/api/models/team/base/revision/{COMMIT}":
                names = [{"rfilename": name} for name in files]
                found = json.dumps({"id": "team/base", "sha": COMMIT, "siblings": names}).encode()
            elif path.startswith(f"/api/models/team/base/tree/{COMMIT}"):
                listed = [
                    {"type": "file", "path": name, "size": f.stat().st_size, "oid": "0" * 40}
                    for name, f in files.items()
                ]
                found = json.dumps(listed).encode()
            elif path.startswith(f"/team/base/resolve/{COMMIT}/"):
                found = files[path.partition(f"{COMMIT}/")[2]].read_bytes()
            else:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(found)))
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{path.replace("/", "_")}"')
            self.end_headers()
            if body:
                self.wfile.write(found)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()
