"""A Databricks and a Kubernetes that speak those APIs, and run what they are given on this host."""

import json
import re
import subprocess
import threading
import uuid
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit


class _Server:
    """A server for the length of a ``with`` block; ``answer`` says what it answers."""

    def __init__(self, program):
        self.program = list(program)
        self.asked = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self):
                size = int(self.headers.get("content-length") or 0)
                body = json.loads(self.rfile.read(size) or b"null")
                url = urlsplit(self.path)
                outer.asked.append((self.command, self.path, body, dict(self.headers)))
                query = {key: values[0] for key, values in parse_qs(url.query).items()}
                status, answer = outer.answer(self.command, url.path, query, body)
                text = answer if isinstance(answer, str) else json.dumps(answer)
                kind = "text/plain" if isinstance(answer, str) else "application/json"
                self.send_response(status)
                self.send_header("content-type", kind)
                self.send_header("content-length", str(len(text.encode())))
                self.end_headers()
                self.wfile.write(text.encode())

            do_GET = do_POST = do_PATCH = do_DELETE = handle_any

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    def start(self, words):
        return subprocess.Popen(
            [*self.program, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


class Databricks(_Server):
    """Jobs API 2.2: run-now, runs/get and runs/get-output; a run is a process here."""

    def __init__(self, program):
        super().__init__(program)
        self.runs = {}

    def answer(self, method, path, query, body):
        name = path.partition("/jobs/")[2]
        if name == "run-now":
            number = len(self.runs) + 1
            self.runs[number] = self.start(body["python_params"])
            return 200, {"run_id": number, "number_in_job": number}
        if name == "runs/get":
            return 200, self._run(int(query["run_id"]))
        if name == "runs/get-output":
            return 200, {"error": "it ended with an error", "metadata": {}}
        return 404, {"error_code": "ENDPOINT_NOT_FOUND", "message": path}

    def _run(self, number):
        code = self.runs[number].poll()
        state = {"life_cycle_state": "RUNNING", "state_message": ""}
        if code is not None:
            self.runs[number].communicate()
            result = "FAILED" if code else "SUCCESS"
            state = {
                "life_cycle_state": "TERMINATED",
                "result_state": result,
                "state_message": f"exit code {code}",
            }
        page = f"http://127.0.0.1:{self.port}/#job/7/run/{number}"
        return {
            "run_id": number,
            "job_id": 7,
            "state": state,
            "run_page_url": page,
            "tasks": [{"run_id": number, "task_key": "stage", "state": state}],
        }


class Kubernetes(_Server):
    """Pods of the core API; a pod's first container is a process here."""

    def __init__(self, program):
        super().__init__(program)
        self.pods = {}
        self.processes = {}
        self.logs = {}
        self.ended = {}

    def config(self):
        """A kubeconfig that leads here."""
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "tester"}}],
            "clusters": [{"name": "here", "cluster": {"server": f"http://127.0.0.1:{self.port}"}}],
            "users": [{"name": "tester", "user": {"token": "not-a-secret"}}],
        }

    def answer(self, method, path, query, body):
        if path.endswith("/events"):
            return 200, {"kind": "EventList", "apiVersion": "v1", "metadata": {}, "items": []}
        found = re.fullmatch(r"/api/v1/namespaces/([^/]+)/pods(?:/([^/]+))?(/log)?", path)
        if not found:
            return 404, _status(404, path)
        _, name, log = found.groups()
        if name is None:
            return self._create(body) if method == "POST" else (200, self._list(query))
        if name not in self.pods:
            return 404, _status(404, name)
        if log:
            self._wait(name)
            return 200, self.logs[name]
        if method == "PATCH":
            self.pods[name]["metadata"]["labels"].update(body["metadata"]["labels"])
        if method == "DELETE":
            self.processes[name].kill()
            return 200, self.pods.pop(name)
        return 200, self._seen(name)

    def _create(self, pod):
        name = pod["metadata"]["name"]
        pod["metadata"] |= {
            "uid": str(uuid.uuid4()),
            "creationTimestamp": _now(),
            "resourceVersion": "1",
        }
        pod["status"] = {"phase": "Pending"}
        container = pod["spec"]["containers"][0]
        self.pods[name] = pod
        self.processes[name] = self.start(container["args"])
        return 201, pod

    def _list(self, query):
        wanted = re.findall(r"([^,=!]+)=([^,=]+)", query.get("labelSelector", ""))
        items = [
            self._seen(name)
            for name, pod in list(self.pods.items())
            if all(pod["metadata"]["labels"].get(key) == value for key, value in wanted)
        ]
        return {"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}

    def _wait(self, name):
        if name not in self.logs:
            said = self.processes[name].communicate()[0]
            self.logs[name] = "".join(
                f"2026-01-01T00:00:00.{i:09d}Z {line}\n" for i, line in enumerate(said.splitlines())
            )

    def _seen(self, name):
        pod, code = self.pods[name], self.processes[name].poll()
        began = pod["metadata"]["creationTimestamp"]
        state = {"running": {"startedAt": began}}
        if code is not None:
            ended_at = self.ended.setdefault(name, _now())
            ended = {"exitCode": code, "startedAt": began, "finishedAt": ended_at}
            state = {"terminated": ended | {"reason": "Error" if code else "Completed"}}
        phase = "Running" if code is None else "Failed" if code else "Succeeded"
        container = pod["spec"]["containers"][0]
        status = {
            "name": container["name"],
            "image": container["image"],
            "imageID": "",
            "ready": code is None,
            "restartCount": 0,
            "state": state,
        }
        pod["status"] = {"phase": phase, "containerStatuses": [status], "startTime": began}
        return pod


def _now():
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _status(code, what):
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "code": code,
        "message": f"{what} not found",
        "reason": "NotFound",
    }
