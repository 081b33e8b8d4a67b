"""Databricks' Jobs API on this machine: create, run-now and runs/get, as the real client asks.

By https://docs.databricks.com/api/workspace/jobs (2.2): a token that was seen returns the run
it started; ``python_params`` are refused where a job has parameters of its own; a run goes
from PENDING over RUNNING to its end. Wheel tasks are run by a function that is given their
command lines.
"""

import itertools
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit


class Workspace:
    """What the server has.

    Attributes:
        url: Where it is.
        jobs: Job id -> settings, as they were sent.
        started: Run id -> what run-now was sent.
        ends: Taken one a run, instead of running its tasks: a run's ``state``.
        faults: Taken one a request, after it was carried out: an HTTP status to answer with.
    """

    def __init__(self, run_task):
        self.url = ""
        self.jobs, self.started, self.ends, self.faults = {}, {}, [], []
        self._run_task = run_task
        self._ids = itertools.count(101)
        self._tokens, self._polls = {}, {}
        self._lock = threading.Lock()

    def answer(self, path, query, body):
        """Status and JSON of an answer."""
        with self._lock:
            if path.endswith("/jobs/create"):
                self.jobs[job := next(self._ids)] = body
                return 200, {"job_id": job}
            if path.endswith("/jobs/run-now"):
                return self._run_now(body)
            if path.endswith("/jobs/runs/get"):
                return self._state(int(query["run_id"]))
        return 404, _error("ENDPOINT_NOT_FOUND", path)

    def _run_now(self, body):
        settings = self.jobs.get(body["job_id"])
        if settings is None:
            return 400, _error("INVALID_PARAMETER_VALUE", f"Job {body['job_id']} does not exist.")
        named = {one["name"] for one in settings.get("parameters", [])}
        if named and body.get("python_params"):
            return 400, _error("INVALID_PARAMETER_VALUE", "python_params with job parameters")
        if set(body.get("job_parameters", {})) - named:
            return 400, _error("INVALID_PARAMETER_VALUE", "unknown job parameter")
        token = body.get("idempotency_token")
        if token in self._tokens:
            return 200, {"run_id": self._tokens[token]}
        run = next(self._ids)
        self.started[run] = body
        self._tokens |= {token: run} if token else {}
        return 200, {"run_id": run, "number_in_job": run}

    def _state(self, run):
        if run not in self.started:
            return 400, _error("INVALID_PARAMETER_VALUE", f"Run {run} does not exist.")
        polls = self._polls[run] = self._polls.get(run, 0) + 1
        if polls == 1:
            state = {"life_cycle_state": "PENDING", "state_message": "Waiting for cluster"}
        else:
            state = self.ends.pop(0) if self.ends else self._done(run)
        return 200, {"run_id": run, "job_id": self.started[run]["job_id"], "state": state}

    def _done(self, run):
        body = self.started[run]
        settings = self.jobs[body["job_id"]]
        given = {one["name"]: one["default"] for one in settings.get("parameters", [])}
        given |= body.get("job_parameters", {})
        for task in _in_order(settings["tasks"]):
            wheel = task["python_wheel_task"]
            words = body.get("python_params") or wheel["parameters"]
            words = [_filled(word, given) for word in words]
            try:
                self._run_task(wheel["package_name"], wheel["entry_point"], words)
            except Exception as error:
                message = f"{task['task_key']}: {error}"
                return {
                    "life_cycle_state": "TERMINATED",
                    "result_state": "FAILED",
                    "state_message": message,
                }
        return {"life_cycle_state": "TERMINATED", "result_state": "SUCCESS", "state_message": ""}


def _filled(word, given):
    return re.sub(r"\{\{job\.parameters\.(\w+)\}\}", lambda found: given[found[1]], word)


def _in_order(tasks):
    done = set()
    waiting = list(tasks)
    while waiting:
        task = next(t for t in waiting if {d["task_key"] for d in t.get("depends_on", [])} <= done)
        waiting.remove(task)
        done.add(task["task_key"])
        yield task


def _error(code, message):
    return {"error_code": code, "message": message}


@contextmanager
def serving(run_task):
    """A workspace whose tasks are run by ``run_task(package, entry_point, words)``."""
    workspace = Workspace(run_task)

    class Handler(BaseHTTPRequestHandler):
        def _answer(self):
            parts = urlsplit(self.path)
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else {}
            query = {name: value[0] for name, value in parse_qs(parts.query).items()}
            status, said = workspace.answer(parts.path, query, body)
            if workspace.faults:
                status, said = workspace.faults.pop(0), _error("TEMPORARILY_UNAVAILABLE", "busy")
            text = json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = _answer

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    workspace.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield workspace
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
