"""A real Airflow in its own environment: scheduler, DAG processor, triggerer and API server."""

import contextlib
import functools
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import httpx

from penstock.child_process import free_port

HOME = Path(__file__).parents[1]
PYTHON = HOME / ".venvs" / "airflow" / "bin" / "python"
START_S = 240
USER, PASSWORD = "tester", "not-a-secret"


@functools.lru_cache
def missing():
    """Make the environment if need be; returns why it cannot be, or nothing."""
    made = subprocess.run(
        [HOME / "scripts" / "make-env.sh", "airflow"], capture_output=True, text=True
    )
    return made.stderr.strip()[-500:] if made.returncode else ""


def environment(folder, **more):
    """Variables of an Airflow that lives in a folder and says nothing to the world."""
    nowhere = "http://127.0.0.1:9"
    return {
        "PATH": f"{PYTHON.parent}:{os.environ['PATH']}",
        "HOME": str(folder),
        "PYTHONPATH": str(HOME / "src"),
        "AIRFLOW_HOME": str(folder),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_FOLDER": str(folder / "dags"),
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), nowhere),
        "NO_PROXY": "127.0.0.1,localhost",
        "GX_ANALYTICS_ENABLED": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "HF_HUB_OFFLINE": "1",
        **more,
    }


class Airflow:
    """``airflow standalone`` in a process group of its own, on SQLite.

    Args:
        folder: For everything it keeps; DAG files are in ``dags``.
        more: Further variables: connections and the like.
    """

    def __init__(self, folder, **more):
        self.folder = Path(folder)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        passwords = self.folder / "passwords.json"
        passwords.write_text(json.dumps({USER: PASSWORD}))
        self._environment = environment(
            self.folder,
            AIRFLOW__API__HOST="127.0.0.1",
            AIRFLOW__API__PORT=str(self.port),
            AIRFLOW__API__BASE_URL=self.url,
            AIRFLOW__API__WORKERS="1",
            AIRFLOW__CORE__EXECUTION_API_SERVER_URL=f"{self.url}/execution/",
            AIRFLOW__CORE__PARALLELISM="2",
            AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS=f"{USER}:admin",
            AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE=str(passwords),
            AIRFLOW__SCHEDULER__SCHEDULER_HEARTBEAT_SEC="1",
            AIRFLOW__LOGGING__LOGGING_LEVEL="INFO",
            **more,
        )
        self._process = None

    def start(self):
        with (self.folder / "standalone.log").open("ab") as log:
            self._process = subprocess.Popen(
                [PYTHON.parent / "airflow", "standalone"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                start_new_session=True,  # its children outlive it, so all are ended as one
                cwd=self.folder,
            )
        self._wait()
        answer = httpx.post(
            f"{self.url}/auth/token", json={"username": USER, "password": PASSWORD}, timeout=30
        )
        token = answer.json()["access_token"]
        self._client = httpx.Client(
            base_url=f"{self.url}/api/v2",
            headers={"authorization": f"Bearer {token}"},
            timeout=60,
        )
        return self

    def stop(self):
        for kind in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, kind)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(10)
        self._client.close()

    def get(self, path, **params):
        answer = self._client.get(path, params=params)
        assert answer.is_success, answer.text
        return answer.json()

    def post(self, path, body):
        return self._client.post(path, json=body)

    def wait_for_dags(self, *names):
        """Until the DAGs have been read."""
        return self._until(lambda: {d["dag_id"] for d in self.get("/dags")["dags"]} >= set(names))

    def ended(self, dag, run_id, patience_s=900):
        """How a run ended: its state, and each task's state and number of tries."""

        def look():
            run = self.get(f"/dags/{dag}/dagRuns/{run_id}")
            return run["state"] if run["state"] in ("success", "failed") else None

        state = self._until(look, patience_s)
        tasks = self.get(f"/dags/{dag}/dagRuns/{run_id}/taskInstances")["task_instances"]
        return state, {one["task_id"]: (one["state"], one["try_number"]) for one in tasks}

    def runs(self, dag):
        return self.get(f"/dags/{dag}/dagRuns")["dag_runs"]

    def log(self, dag, run_id, task, number=1):
        found = self.get(f"/dags/{dag}/dagRuns/{run_id}/taskInstances/{task}/logs/{number}")
        return json.dumps(found)

    def _until(self, look, patience_s=300):
        end_s = time.monotonic() + patience_s
        while time.monotonic() < end_s:
            found = look()
            if found:
                return found
            time.sleep(0.5)
        raise AssertionError(self._said())

    def _wait(self):
        end_s = time.monotonic() + START_S
        while time.monotonic() < end_s:
            assert self._process.poll() is None, self._said()
            try:
                health = httpx.get(f"{self.url}/api/v2/monitor/health", timeout=5).json()
                if all(
                    health[one]["status"] == "healthy"
                    for one in ("metadatabase", "scheduler", "dag_processor")
                ):
                    return
            except (httpx.HTTPError, ValueError, KeyError):
                pass
            time.sleep(0.5)
        raise AssertionError(self._said())

    def _said(self):
        return (self.folder / "standalone.log").read_text(errors="replace")[-6000:]
